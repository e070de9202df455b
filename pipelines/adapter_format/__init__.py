"""The two files of an adapter in PEFT's format: keys, configuration, scale, limits and checks.

Everything that reads `adapter_config.json` or `adapter_model.safetensors` goes through this
package. It needs the standard library, numpy and safetensors only, so that the registry and recipes
load without torch.
"""
