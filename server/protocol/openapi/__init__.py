"""The API described: as an OpenAPI document, for `/v1/capabilities` and for docs/api.md."""
