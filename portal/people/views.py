"""What pages and API see of people."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field, SecretStr

from portal.views import Form, Role, View


class PersonView(View):
    """Somebody who may sign in."""

    id: str
    name: str
    role: Role
    organization_id: str
    organization_name: str
    created_at: datetime


class SetupForm(Form):
    """Creates the first owner."""

    token: str = Field(max_length=200, description="From the one-time set-up link that the portal printed.")
    name: str = Field(min_length=1, max_length=100, examples=["alice"])
    password: SecretStr = Field(description="At least 10 characters.", examples=["a long sentence is fine"])
    organization: str = Field(default="", max_length=100, description="The organisation's name; may be changed later.")


class SignInForm(Form):
    """Opens a session."""

    name: str = Field(max_length=100, examples=["alice"])
    password: SecretStr


class OpenedSession(View):
    """A new session; the token goes into the cookie and nowhere else."""

    token: SecretStr
    person: PersonView
