"""Networks; a configuration names one by its file or folder (`model: {name: act}`)."""
