"""From files to tensors: manifests, media, tables, windows."""
