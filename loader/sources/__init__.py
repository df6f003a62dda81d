"""Where values come from: YAML files, flags, --set, and the aliases of other systems."""
