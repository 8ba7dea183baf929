"""The topic bus: protocol.py says what it promises; amqp.py (RabbitMQ) and memory.py (one process) keep it."""
