"""The Python services that people write: files, versions, properties, and the library that comes with the product."""
