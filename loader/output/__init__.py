"""What the loader produces: TrainingArguments, and the resolved configuration as YAML, JSON or a schema."""
