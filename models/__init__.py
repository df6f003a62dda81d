"""Networks: the file or folder name is the name a configuration uses (`model: {name: act}`)."""
