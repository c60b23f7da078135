"""Keys: what is accepted, what is refused, and what becomes of a file that changes."""

import hashlib
import hmac
import os
import re
import string
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.server.keys import CHECK_SECONDS, VARIABLE, Keys, configured_keys
from distaff.server.process.system import engine_environment
from distaff.server.quotas.key_settings import KeySettings
from distaff.server.quotas.keys_file import KeysRefused
from distaff.server.settings import ServerSettings

VISIBLE = string.ascii_letters + string.digits + string.punctuation
FIRST, SECOND = "sk-first-0123456789", "sk-second-0123456789"

fit = st.text(VISIBLE, min_size=8, max_size=40).filter(lambda key: not key.startswith("#"))
silent = st.sampled_from(["", "  ", "\t", "#", "# a comment, with spaces and ümlauts", "#short"])
unfit = st.one_of(
    st.text(VISIBLE, min_size=1, max_size=7).filter(lambda key: not key.startswith("#")),
    st.builds(
        lambda key, at, bad: key[:at] + bad + key[at:],
        fit,
        st.integers(1, 8),
        st.sampled_from([" ", "\t", "\x00", "\x0b", "\x1c", "\x7f", "\u00e9", "\u2028", "\ufeff"]),
    ),
    fit.map(lambda key: " " + key),
    st.tuples(fit, fit.map(lambda word: word.replace("=", "-"))).map(" ".join),
)


def file_of(*lines: str, end: str = "\n") -> bytes:
    return end.join(lines).encode()


@pytest.fixture(scope="module")
def file():
    with TemporaryDirectory() as folder:
        yield Path(folder, "{keys}")


class TestReading:
    """What a file and the environment may hold."""

    @given(st.lists(st.one_of(fit, silent), max_size=8), fit, st.sampled_from(["\n", "\r\n"]), fit)
    def test_a_file_holds_a_key_a_line(self, file, lines, last, end, other):
        lines = [*lines, last]
        file.write_bytes(file_of(*lines, end=end))
        keys = Keys(file=file)
        accepted = {line for line in lines if line.strip() and not line.startswith("#")}
        assert all(keys.identify(key) for key in accepted)
        assert keys.identify(other) is None or other in accepted

    @given(st.lists(st.one_of(fit, silent), max_size=4), unfit, st.lists(fit, max_size=2))
    def test_an_unfit_line_is_named_and_not_repeated(self, file, before, line, after):
        file.write_bytes(file_of(*before, line, *after))
        with pytest.raises(KeysRefused) as refused:
            Keys(file=file)
        message = str(refused.value).removesuffix("has a character that is not visible ASCII")
        message = message.removesuffix("is shorter than 8 characters")
        message = re.sub(r": word \d+ behind the key is not a setting; expected one of .*", " ", message)
        assert message == f"line {len(before) + 1} of {file} "

    @given(st.lists(silent, max_size=3))
    def test_a_file_without_a_key_is_refused(self, file, lines):
        file.write_bytes(file_of(*lines))
        with pytest.raises(KeysRefused, match="holds no key"):
            Keys([FIRST], file)

    def test_settings_are_behind_a_key_and_those_of_all_behind_a_star(self, tmp_path):
        """A key's own come first, `none` takes a limit back, and of two equal lines the later one counts."""
        lines = [
            f"{FIRST} concurrent=9",
            "* requests_per_minute=60  concurrent=4 priority=2",
            f"{FIRST} name=team-a requests_per_minute=none weight=0.5 ",
            SECOND,
        ]
        (tmp_path / "keys").write_bytes(file_of(*lines))
        keys = configured_keys(tmp_path / "keys", {VARIABLE: "sk-third-0123456789"})
        assert keys is not None

        def settings(key: str) -> KeySettings:
            return keys.settings(keys.identify(key) or "")

        every = KeySettings(requests_per_minute=60, concurrent=4, priority=2)
        assert settings(FIRST) == KeySettings(name="team-a", weight=0.5, concurrent=4, priority=2)
        assert settings(SECOND) == settings("sk-third-0123456789") == keys.settings("removed") == every

    @pytest.mark.parametrize(
        ("words", "complaint"),
        [
            ("weight=0", "weight is '0'; expected a number from 0.01 to 1000"),
            ("weight=1e3", "weight is '1e3'"),
            ("weight=nan", "weight is 'nan'"),
            ("priority=1.5", "priority is '1.5'; expected an integer"),
            ("priority=99999999999", "priority is"),
            ("requests_per_minute=0", "requests_per_minute is '0'; expected an integer from 1"),
            ("tokens_per_minute=-1", "tokens_per_minute is '-1'"),
            ("concurrent=", "concurrent is ''"),
            ("name=a/b", "name is 'a/b'; expected at most 64 letters"),
            ("weight=1 weight=1", "weight is set twice"),
            ("weight=2 sk-second-0123456789", "word 2 behind the key is not a setting"),
            ("sk-second-0123456789=", "word 1 behind the key is not a setting"),
        ],
    )
    def test_an_invalid_setting_is_named_and_no_key(self, tmp_path, words, complaint):
        (tmp_path / "keys").write_text(f"\n{FIRST} {words}\n")
        with pytest.raises(KeysRefused) as refused:
            Keys(file=tmp_path / "keys")
        message = str(refused.value)
        assert message.startswith(f"line 2 of {tmp_path / 'keys'}: {complaint}")
        assert FIRST not in message and SECOND not in message

    def test_all_keys_have_no_name(self, tmp_path):
        (tmp_path / "keys").write_text(f"{FIRST}\n* name=everybody")
        with pytest.raises(KeysRefused, match=r"line 2 .* names all keys"):
            Keys(file=tmp_path / "keys")

    def test_what_is_no_file_is_refused_at_once(self, tmp_path):
        """A pipe has no end that a reader could wait for."""
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "large").write_bytes(b"#" * 300_000)
        for name, reason in {
            "pipe": "regular",
            "large": "larger",
            "none": "No such",
            ".": "directory",
        }.items():
            with pytest.raises(KeysRefused, match=reason):
                Keys(file=tmp_path / name)

    def test_the_environment_holds_keys_with_commas_between(self, tmp_path):
        assert configured_keys(None, {}) is None
        keys = configured_keys(None, {VARIABLE: f",{FIRST},{SECOND},"})
        assert keys and keys.identify(FIRST) and keys.identify(SECOND)
        (tmp_path / "keys").write_text(FIRST)
        both = configured_keys(tmp_path / "keys", {VARIABLE: SECOND})
        assert both and both.identify(FIRST) and both.identify(SECOND)

    @pytest.mark.parametrize("value", ["", ",", "short", f"{FIRST}, {SECOND}", f"{FIRST}\n"])
    def test_a_variable_that_holds_none_or_an_unfit_one_is_refused(self, value):
        """Never does a mistake there leave the server open."""
        with pytest.raises(KeysRefused, match=VARIABLE) as refused:
            configured_keys(None, {VARIABLE: value})
        assert FIRST not in str(refused.value) and SECOND not in str(refused.value)

    def test_engine_processes_inherit_no_keys(self, monkeypatch):
        monkeypatch.setenv(VARIABLE, FIRST)
        monkeypatch.setenv("ANOTHER", "kept")
        environment = engine_environment()
        assert VARIABLE not in environment and environment["ANOTHER"] == "kept"


class TestLookingUp:
    """A key that came."""

    @given(fit)
    def test_an_id_is_the_digests_beginning(self, key):
        assert Keys([key]).identify(key) == hashlib.sha256(key.encode()).hexdigest()[:8]

    @given(fit, st.data())
    def test_nothing_but_the_key_itself_is_accepted(self, key, data):
        at = data.draw(st.integers(0, len(key)))
        other = data.draw(
            st.sampled_from([key[:at], key[:at] + key[at + 1 :], key + key[at:], key.swapcase()])
        )
        assert (Keys([key]).identify(other) is None) == (other != key)

    def test_bytes_that_are_no_text_are_no_key(self):
        assert Keys([FIRST]).identify(b"\xff\xfe".decode(errors="surrogateescape")) is None

    @given(st.lists(fit, min_size=1, max_size=6, unique=True), st.data())
    def test_it_is_compared_with_every_digest_whatever_it_is(self, keys, data):
        """In constant time, and without an end at the first that is equal."""
        came = data.draw(st.sampled_from([*keys, "sk-nobody"]))
        compared = []

        def compare(one: bytes, other: bytes) -> bool:
            compared.append(other)
            return one == other

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hmac, "compare_digest", compare)
            Keys(keys).identify(came)
        assert sorted(compared) == sorted(hashlib.sha256(key.encode()).digest() for key in keys)

    def test_no_key_is_kept(self, tmp_path):
        (tmp_path / "keys").write_text(SECOND)
        keys = Keys([FIRST], tmp_path / "keys")
        keys.identify(FIRST)
        shown = f"{vars(keys)!r} {ServerSettings(model='m', keys=keys)!r}"
        assert FIRST not in shown and SECOND not in shown


class TestChanging:
    """A file that is written, spoilt, removed and put back while the server runs."""

    @given(
        st.lists(st.one_of(st.lists(fit, max_size=3), unfit.map(lambda key: [key]), st.none()), max_size=8),
        st.integers(0, 3),
    )
    def test_the_last_usable_content_is_in_force(self, steps, replaced):
        now = 0.0
        with TemporaryDirectory() as folder:
            file = Path(folder, "keys")
            file.write_text(FIRST)
            keys = Keys([SECOND], file, clock=lambda: now)
            in_force = {FIRST}
            for number, lines in enumerate(steps):
                self._change(file, lines, in_place=number % 4 != replaced)
                for _ in range(2):  # one look sees the change, the next that it is complete
                    now += CHECK_SECONDS
                    keys.identify("")
                if lines and all(len(line) >= 8 and set(line) <= set(VISIBLE) for line in lines):
                    in_force = set(lines)
                seen = {FIRST, *(line for step in steps[: number + 1] for line in step or ())} - {SECOND}
                assert {key for key in seen if keys.identify(key)} == in_force
                assert keys.identify(SECOND)

    @staticmethod
    def _change(file: Path, lines: list[str] | None, in_place: bool) -> None:
        if lines is None:
            file.unlink(missing_ok=True)
            return
        written = file if in_place else file.with_suffix(".new")
        was = file.stat().st_mtime_ns if file.exists() else 0
        written.write_text("\n".join(lines))
        os.utime(written, ns=(was + 10**9, was + 10**9))
        written.replace(file)

    def test_a_secret_that_a_kubelet_has_changed_is_read_again(self, tmp_path):
        """Its file is a link through `..data`, a link to a folder that another one replaces."""
        now = 0.0
        for number, key in enumerate((FIRST, SECOND)):
            (tmp_path / f"..{number}").mkdir()
            (tmp_path / f"..{number}" / "keys.txt").write_text(key)
        (tmp_path / "..data").symlink_to("..0")
        (tmp_path / "keys.txt").symlink_to("..data/keys.txt")
        keys = Keys(file=tmp_path / "keys.txt", clock=lambda: now)
        (tmp_path / "..new").symlink_to("..1")
        (tmp_path / "..new").replace(tmp_path / "..data")
        for _ in range(2):
            now += CHECK_SECONDS
            keys.identify("")
        assert keys.identify(SECOND) and not keys.identify(FIRST)

    def test_a_file_that_is_being_written_counts_once_it_is_left_alone(self, tmp_path):
        """At no moment is a piece of a key accepted, or a key refused that was there before and is after."""
        now, file = 0.0, tmp_path / "keys"
        file.write_text(FIRST + "\n")
        keys = Keys(file=file, clock=lambda: now)
        content = f"{FIRST}\n{SECOND}\n"
        for end in range(len(content) + 1):
            file.write_text(content[:end])
            now += CHECK_SECONDS
            accepted = {content[:end].splitlines()[-1] if end else "", SECOND[:8], SECOND}
            assert keys.identify(FIRST) and not any(map(keys.identify, accepted - {FIRST}))
        now += CHECK_SECONDS
        assert keys.identify(FIRST) and keys.identify(SECOND) and not keys.identify(SECOND[:-1])

    def test_a_key_that_went_long_ago_is_refused_at_the_first_request_since(self, tmp_path):
        now, file = 0.0, tmp_path / "keys"
        file.write_text(FIRST)
        keys = Keys(file=file, clock=lambda: now, wall=lambda: file.stat().st_ctime + now)
        file.write_text(SECOND)
        now += 2 * CHECK_SECONDS
        assert keys.identify(SECOND) and not keys.identify(FIRST)

    def test_it_is_looked_at_once_a_second_at_most(self, tmp_path, monkeypatch):
        now, looks = 0.0, []
        file = tmp_path / "keys"
        file.write_text(FIRST)
        keys = Keys(file=file, clock=lambda: now)
        look = os.stat
        monkeypatch.setattr(os, "stat", lambda *path, **options: looks.append(path) or look(*path, **options))
        for moment in (0.0, 0.5, 0.9, 1.0, 1.5, 1.9, 2.0):
            now = moment
            assert keys.identify(FIRST)
        assert looks == [(file,), (file,)]

    def test_what_is_wrong_is_said_once_and_again_once_it_is_wrong_again(self, tmp_path, caplog):
        now = 0.0
        file = tmp_path / "keys"
        file.write_text(FIRST)
        keys = Keys(file=file, clock=lambda: now)

        def complaints() -> list[str]:
            nonlocal now
            caplog.clear()
            for _ in range(3):
                now += CHECK_SECONDS
                assert keys.identify(FIRST)
            assert FIRST not in caplog.text
            return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]

        away = file.rename(tmp_path / "away")
        missing = f"cannot read {file}: No such file or directory; the keys read before remain valid"
        assert complaints() == [missing]
        away.rename(file)
        assert complaints() == []
        file.rename(away)
        assert complaints() == [missing]
        file.write_text("")
        assert complaints() == [f"{file} holds no key; the keys read before remain valid"]
