"""What the server gives the page beside the graph: a help page for each node, and the artist's language."""

from lab.host import ROOT
from lab.server import ComfyServer


def test_every_node_has_a_help_page(server: ComfyServer) -> None:
    ours = {name: info for name, info in server.object_info().items() if name.startswith("DreamTuner")}
    assert ours
    for name, info in ours.items():
        page = server.get(f"/extensions/DreamTuner/docs/{name}.md").decode()
        assert page.startswith(f"# {info['display_name']}"), name
    for path in sorted((ROOT / "web" / "docs").glob("*/*.md")):  # the page asks for these first
        page = server.get(f"/extensions/DreamTuner/docs/{path.parent.name}/{path.name}").decode()
        assert page == path.read_text(encoding="utf-8"), path


def test_every_language_is_served(server: ComfyServer) -> None:
    languages = {folder.name for folder in (ROOT / "locales").iterdir()}
    served = server.get_json("/i18n")
    assert languages <= set(served)
    assert all("DreamTunerEncodeSubjectImage" in served[language]["nodeDefs"] for language in languages - {"en"})
