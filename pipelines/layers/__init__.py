"""Everything fast: attention, fused decoder layers, LoRA linears, fp8 and their kernels."""
