"""The endpoints of the REST API, one module for each kind of thing. Each ends with its table ENDPOINTS."""
