"""Dependencies of the routes, as short aliases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, cast

from fastapi import Depends, Request
from sqlmodel import Session

from app.state import Runoff
from app.store.database import reading


def get_state(request: Request) -> Runoff:
    """The running server's parts."""
    return cast(Runoff, request.app.state.runoff)


State = Annotated[Runoff, Depends(get_state)]


def get_reading(state: State) -> Iterator[Session]:
    """A session for reading. Closed before the response is sent: a slow download must not hold SQLite's read lock."""
    with reading(state.engine) as session:
        yield session


Reading = Annotated[Session, Depends(get_reading, scope="function")]
