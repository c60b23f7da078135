"""Who may be served without a key: this machine, or those that an operator let in by word."""

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.server import exit_codes
from distaff.server.command import serve
from distaff.server.command.cli import app, run
from distaff.server.command.exposure import check_exposure, is_loopback, warn_of_exposure
from distaff.server.exit_codes import Failed
from distaff.server.keys import Keys

KEYS = Keys(["sk-0123456789"])


@given(st.ip_addresses(v=4, network="127.0.0.0/8"))
def test_this_machines_own_addresses_need_no_key(address):
    check_exposure(str(address), None, "keys")
    assert is_loopback(f"::ffff:{address}")


@given(st.ip_addresses().filter(lambda address: not address.is_loopback))
def test_every_other_address_needs_keys_or_a_word(address):
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return
    with pytest.raises(Failed, match=r"--api-keys FILE .*--auth none") as refused:
        check_exposure(str(address), None, "keys")
    assert refused.value.code == exit_codes.REFUSED_SETTING
    check_exposure(str(address), KEYS, "keys")
    check_exposure(str(address), None, "none")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1", "::1"])
def test_names_of_this_machine(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "0", "::", "::ffff:10.0.0.1", "10.0.0.1", "fe80::1"])
def test_names_of_more_than_this_machine(host):
    assert not is_loopback(host)


def test_one_address_that_others_reach_is_enough(monkeypatch):
    """A name may lead to several; which of them is listened on is not ours to foresee."""
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **options: found)
    assert not is_loopback("both")
    found.pop()
    assert is_loopback("both")


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1"])
def test_keys_that_nobody_is_asked_for_are_a_contradiction(host):
    with pytest.raises(Failed, match="exclude each other") as refused:
        check_exposure(host, KEYS, "none")
    assert refused.value.code == exit_codes.USAGE


def test_an_open_server_says_so_once(caplog):
    warn_of_exposure("http://127.0.0.1:8000", "keys")
    assert not caplog.records
    warn_of_exposure("http://127.0.0.1:8000", "none")
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "http://127.0.0.1:8000" in record.getMessage()


class TestServe:
    """The command, up to the moment in which it would serve."""

    @pytest.fixture
    def made(self, monkeypatch):
        """The settings of the web processes that were made; none of them runs."""
        made = []

        class WebProcess:
            def __init__(self, settings, *others, **options):
                made.append(settings)

            def run(self):
                pass

        monkeypatch.setattr(serve, "WebProcess", WebProcess)
        monkeypatch.setattr("distaff.server.engines.engine_process.start_early", lambda commands: None)
        monkeypatch.setattr("distaff.server.command.cli.configure_logging", lambda level, **_: None)
        return made

    @staticmethod
    def _serve(*words: str) -> int:
        return run(lambda: app(["serve", "--port", "0", *words], standalone_mode=False))

    def test_its_keys_reach_the_web_process(self, made, monkeypatch, tmp_path):
        (tmp_path / "keys").write_text("sk-of-the-file")
        monkeypatch.setenv("DISTAFF_API_KEYS", "sk-of-the-environment")
        assert self._serve("--api-keys", str(tmp_path / "keys")) == 0
        (settings,) = made
        assert settings.keys.identify("sk-of-the-file")
        assert settings.keys.identify("sk-of-the-environment")

    def test_keys_and_no_keys_exclude_each_other(self, made, monkeypatch, capsys):
        monkeypatch.setenv("DISTAFF_API_KEYS", "sk-of-the-environment")
        assert self._serve("--auth", "none") == exit_codes.USAGE
        assert not made and "exclude each other" in capsys.readouterr().err

    def test_a_bad_key_in_the_environment_ends_it(self, made, monkeypatch, capsys):
        monkeypatch.setenv("DISTAFF_API_KEYS", "sk-planted-key,planted")
        assert self._serve() == exit_codes.REFUSED_SETTING
        said = capsys.readouterr().err
        assert said == "distaff: key 2 of DISTAFF_API_KEYS is shorter than 8 characters\n"

    def test_this_machine_is_served_in_silence(self, made, caplog, capsys):
        assert self._serve() == 0
        assert made[0].keys is None
        assert not caplog.records and capsys.readouterr().err == ""

    def test_everybody_is_served_with_a_warning(self, made, caplog):
        assert self._serve("--auth", "none") == 0
        (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert "http://127.0.0.1:" in line
