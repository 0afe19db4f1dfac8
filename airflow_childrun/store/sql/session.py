"""Sessions: one row per living process; its leases live and die with it."""

from __future__ import annotations

import hashlib
from uuid import UUID

from sqlalchemy import Connection

from airflow_childrun.store.api import Owner, Session
from airflow_childrun.store.decision import session_is_over
from airflow_childrun.store.sql.engine import Database
from airflow_childrun.store.sql.statements import Statements


class Sessions:
    """Opens, renews and closes sessions, all by the database's time."""

    def __init__(self, database: Database, statements: Statements) -> None:
        self._database = database
        self._statements = statements

    def open(self, session_id: UUID, owner: Owner, ttl_us: int) -> Session:
        """Open a session, and end those of lower incarnations of its key."""
        digest = hashlib.sha256(owner.key.encode()).hexdigest()

        def transaction(connection: Connection) -> Session:
            now = self._now(connection)
            if owner.key:
                older = {"the_owner": digest, "the_incarnation": owner.incarnation}
                connection.execute(self._statements.supersede_sessions, older)
            connection.execute(
                self._statements.insert_session,
                {
                    "session_id": session_id,
                    "label": owner.label,
                    "owner_key": owner.key,
                    "owner_key_digest": digest,
                    "incarnation": owner.incarnation,
                    "expires_at": now + ttl_us,
                    "ended": None,
                },
            )
            # A repeated call finds its row; one that is over stays so.
            if not self._prolong(connection, session_id, now, ttl_us):
                raise session_is_over(session_id)
            return Session(session_id, now + ttl_us, now)

        return self._database.write(transaction)

    def renew(self, session_id: UUID, ttl_us: int) -> Session | None:
        """Put the end off; None if the session is over."""

        def transaction(connection: Connection) -> Session | None:
            now = self._now(connection)
            alive = self._prolong(connection, session_id, now, ttl_us)
            return Session(session_id, now + ttl_us, now) if alive else None

        return self._database.write(transaction)

    def close(self, session_id: UUID) -> None:
        """End a session."""
        self._database.write(
            lambda connection: connection.execute(self._statements.close_session, {"the_session": session_id})
        )

    def _now(self, connection: Connection) -> int:
        return int(connection.execute(self._statements.now).scalar_one())

    def _prolong(self, connection: Connection, session_id: UUID, now: int, ttl_us: int) -> bool:
        until = {"the_session": session_id, "the_now": now, "new_end": now + ttl_us}
        return connection.execute(self._statements.prolong_session, until).rowcount > 0
