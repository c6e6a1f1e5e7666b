"""HTTP/1.1 for the router's traffic: a server and a client on asyncio protocols and llhttp (`httptools`).

What a proxy needs and no more: heads are parsed once, bodies passed on in the pieces in which they come, a
request costs one task. llhttp is strict: two lengths, a length beside a transfer coding, folded headers, bare
line feeds are errors; and what is passed on is written anew, so that no two readers can disagree about it.
The admin port, health checks and drivers stay on aiohttp: they are few, and need more of HTTP.
"""
