"""A real PostgreSQL and a real S3 that are started for people who have neither: no root, no Docker, no set-up.

Data, passwords and logs live under one state folder (`.hubflow/`). Services never import this: `hubflow dev`,
`hubflow demo` and the tests start the servers and hand their addresses on. The wheels are the extra `embedded` of this package.
"""

from shared.embedded.postgres import embedded_postgres
from shared.embedded.s3 import S3Address, embedded_s3

__all__ = ["S3Address", "embedded_postgres", "embedded_s3"]
