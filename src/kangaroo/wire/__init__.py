"""The ttrpc wire: frames and envelopes without I/O, an asyncio shell, and generated messages."""
