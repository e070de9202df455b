"""Everything fast: attention, fused decoder layers, LoRA linears, float8 and their kernels.

`install` puts the fused layers on a model, `families` decides whether they fit. A decoder layer is
an attention block and an MLP block over `lora_linears`, which run on `frozen_linears` and
`kernels`.
"""
