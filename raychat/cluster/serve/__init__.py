"""Serving: an OpenAI-compatible API and the chat page, on Ray Serve.

types.py    what requests, answers and errors look like, and what ingress and model say to each other
loop.py     an Engine in a thread of its own, for asyncio code
service.py  one model that answers chat requests: rendering, engine, text; knows neither HTTP nor Ray
http.py     FastAPI over anything that answers chat requests
page.html   the chat page, self-contained
app.py      the two deployments (ingress, model) and `build`, which serve_config.yaml names
run.py      serve until interrupted, for jobs/serve.py
"""
