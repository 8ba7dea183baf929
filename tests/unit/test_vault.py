"""One key, and several while it is changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from shared.errors import ConfigurationError, PermanentError, UserError
from shared.vault import Vault, new_key

OLD, NEW = new_key(), new_key()
NOW = datetime.now(UTC)


def test_the_first_key_encrypts_and_signs_and_all_read() -> None:
    old, new, both = Vault(OLD), Vault(NEW), Vault(f"{NEW}, {OLD}")
    for writer in (old, new):
        assert both.decrypt(writer.encrypt("x")) == "x"
        assert both.open_link("decision", writer.sign_link("decision", "run", NOW + timedelta(hours=1)), NOW) == "run"
    assert new.decrypt(both.encrypt("x")) == "x"
    assert new.open_link("decision", both.sign_link("decision", "run", NOW + timedelta(hours=1)), NOW) == "run"
    assert both.derived_key("a") == new.derived_key("a") != old.derived_key("a")
    with pytest.raises(PermanentError):
        old.decrypt(both.encrypt("x"))
    with pytest.raises(UserError):
        old.open_link("decision", both.sign_link("decision", "run", NOW + timedelta(hours=1)), NOW)


def test_only_what_is_not_of_the_first_key_is_encrypted_anew() -> None:
    both = Vault(f"{NEW},{OLD}")
    renewed = both.renewed(Vault(OLD).encrypt("x"))
    assert renewed is not None
    assert Vault(NEW).decrypt(renewed) == "x"
    assert both.renewed(renewed) is None
    with pytest.raises(PermanentError):
        both.renewed(Vault(new_key()).encrypt("x"))


@pytest.mark.parametrize(
    "keys",
    ["", "short", f"{NEW},", f"{NEW},short", f"{NEW} {OLD}"],
    ids=["none", "short", "a comma", "one short", "a space"],  # keys are made anew in each process
)
def test_each_key_must_be_one(keys: str) -> None:
    with pytest.raises(ConfigurationError, match="NEW,OLD"):
        Vault(keys)
