"""Where live events go: files, databases, MQTT, webhooks."""
