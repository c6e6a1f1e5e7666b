"""Live serving: the router in front of vLLM servers, and a simulated engine to rehearse it with."""
