"""wandb: online only where a key is at hand, found without asking for one."""

from sft_recipes.tracking import logged_in


def test_a_key_in_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert logged_in()


def test_a_key_in_netrc_for_the_right_host(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not logged_in()
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine api.wandb.ai login user password k\n")
    netrc.chmod(0o600)
    assert logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")
    assert not logged_in()


def test_an_unreadable_netrc_is_not_a_login(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine api.wandb.ai bogus\n")
    assert not logged_in()
