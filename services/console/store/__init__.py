"""SQL of console, one module for each aggregate. It owns tenants, tokens, secrets, workflows, subscriptions and decisions."""
