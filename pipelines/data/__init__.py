"""The prepare stage: source files become a packed, masked, audited dataset."""
