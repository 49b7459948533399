"""The run config: parsed, typed and validated once."""
