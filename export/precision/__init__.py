"""Half and eight bits: what is rounded, and what stays in float32."""
