"""The packed format: schema, packing, writer, reader, and the feed for trainers."""
