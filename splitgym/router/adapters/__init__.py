"""Our policy inside other routers: see docs/adapters.md."""
