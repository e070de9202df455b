"""The patterns of names that people choose for models and aliases."""

from __future__ import annotations

# Names become folders of the store, so neither pattern admits a separator or a leading dot.
MODEL_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
ALIAS_NAME = "[a-z][a-z0-9-]{0,31}"
