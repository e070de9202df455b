"""Engines that turn prompts into text; each speaks `serve_app.engines.protocol.Engine`."""
