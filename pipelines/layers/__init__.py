"""Fused layers, attention, float8 and their kernels.

`install` puts the fused layers on a model, `families` decides whether they fit. A decoder layer is
an attention block and an MLP block over `lora_linears`, which run on `frozen_linears` and
`kernels`.
"""
