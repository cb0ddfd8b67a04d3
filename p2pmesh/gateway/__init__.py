"""The door: OpenAI-compatible HTTP for programs that know nothing of meshes."""
