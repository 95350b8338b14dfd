"""Compiled code is kept and looked for only where nobody but this user and root can have written it."""

import os
import stat
import subprocess

import pytest

from jeffnet.system import code_cache
from jeffnet.system.code_cache import code_folders, make_code_folder, untrusted

NAME = "code"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of this user alone, whose file `code` is too; and the cache."""
    monkeypatch.setenv("JEFFNET_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o755)
    (folder / NAME).write_text("code")
    (folder / NAME).chmod(0o644)
    return folder


def give_away(path, monkeypatch):
    """Make a path another user's."""
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:  # all that this user has
        monkeypatch.setattr(os, "geteuid", lambda: 12345)


@pytest.mark.parametrize("mode", [0o755, 0o700, 0o555, 0o1777])
def test_what_lies_in_a_folder_that_others_cannot_change_is_trusted(mode, folder):
    """In a sticky one others cannot take the place of a file that is not theirs."""
    folder.chmod(mode)
    assert untrusted(folder / NAME) is None
    assert untrusted(folder / "missing" / "too") is None


@pytest.mark.parametrize("mode", [0o777, 0o757])
@pytest.mark.parametrize("which", ["file", "folder", "folder above"])
def test_what_others_may_write_is_not(which, mode, folder, tmp_path):
    changed = {"file": folder / NAME, "folder": folder, "folder above": tmp_path}[which]
    changed.chmod(mode)
    reason = untrusted(folder / NAME)
    assert reason is not None and str(changed) in reason and f"written by others (mode {mode:o})" in reason
    if which != "file":
        assert untrusted(folder / "missing") == reason


def test_into_a_sticky_folder_itself_others_may_write(folder):
    folder.chmod(0o1777)
    assert "written by others (mode 1777)" in str(untrusted(folder))


def test_another_users_is_not_trusted(folder, monkeypatch):
    assert untrusted(folder / NAME) is None
    give_away(folder / NAME, monkeypatch)
    assert "belongs to another user (number" in str(untrusted(folder / NAME))


def test_a_group_without_other_members_is_nobody_else(folder, monkeypatch):
    folder.chmod(0o775)
    monkeypatch.setattr(code_cache, "_is_own_group", lambda number: False)
    assert "written by others (mode 775)" in str(untrusted(folder / NAME))
    monkeypatch.setattr(code_cache, "_is_own_group", lambda number: True)
    assert untrusted(folder / NAME) is None
    folder.chmod(0o777)
    assert untrusted(folder / NAME) is not None
    folder.chmod(0o775)
    monkeypatch.setattr(code_cache, "_has_access_list", lambda path: True)
    assert untrusted(folder / NAME) is not None


def test_own_groups(monkeypatch):
    import grp
    import pwd
    from types import SimpleNamespace

    monkeypatch.setattr(pwd, "getpwuid", lambda number: SimpleNamespace(pw_name="me", pw_gid=7))
    groups = {7: ("me", []), 8: ("me", []), 9: ("staff", [])}
    monkeypatch.setattr(
        grp, "getgrgid", lambda number: SimpleNamespace(gr_name=groups[number][0], gr_mem=groups[number][1])
    )
    assert [code_cache._is_own_group(number) for number in (7, 8, 9, 10)] == [True, False, False, False]
    groups[7] = ("me", ["me", "you"])
    assert not code_cache._is_own_group(7)


def test_a_link_is_judged_by_where_it_leads(folder, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / NAME).write_text("code")
    (folder / "link").symlink_to(shared / NAME)
    assert str(shared) in str(untrusted(folder / "link"))
    (shared / "back").symlink_to(folder / NAME)
    assert untrusted(shared / "back") is None  # and what is used is where it leads: `code_folders` gives no links
    (tmp_path / "round").symlink_to(tmp_path / "round")
    assert "cannot be looked at" in str(untrusted(tmp_path / "round" / NAME))


def test_folders_are_given_without_links(folder, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.setenv("JEFFNET_CACHE", str(tmp_path / "link"))
    assert code_folders("new")[0] == folder.resolve() / "new"


def test_users_who_share_a_cache_have_a_folder_each(folder, monkeypatch):
    own = folder / f"new-{os.geteuid()}"
    assert code_folders("new") == [folder / "new", own]
    folder.chmod(0o1777)
    (folder / "new").mkdir()
    (folder / "new").chmod(0o777)
    assert code_folders("new") == [own]
    folder.chmod(0o777)
    assert code_folders("new") == []


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022])
def test_a_new_folder_is_for_its_user_alone(umask, folder):
    new = folder / "a" / "b" / "new"
    before = os.umask(umask)
    try:
        assert make_code_folder(new) and make_code_folder(new)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (new, new.parent, new.parent.parent)]
    assert modes == [0o700, 0o755, 0o755]


def test_a_folder_that_cannot_be_used(folder):
    assert not make_code_folder(folder / NAME / "below a file")
    folder.chmod(0o777)
    assert not make_code_folder(folder / "new")


@pytest.mark.skipif(not hasattr(os, "listxattr"), reason="lists of access are Linux's")
def test_access_lists_are_seen(folder):
    assert not code_cache._has_access_list(folder)
    try:
        subprocess.run(["setfacl", "-m", "u:12345:rwx", str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no setfacl here")
    assert code_cache._has_access_list(folder)
