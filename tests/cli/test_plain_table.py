from rich.console import Console

from fastssl.cli.plain_table import plain_table


def test_nothing_is_cut_off():
    table = plain_table("answer", "probability")
    table.add_row("由地球引力造成的降水是大氣中水汽凝結的產物", "12.3%")
    console = Console(width=24)
    with console.capture() as shown:
        console.print(table)
    assert "…" not in shown.get()
    letters = "".join(line.split(" ")[0] for line in shown.get().splitlines()[1:])
    assert letters == "由地球引力造成的降水是大氣中水汽凝結的產物"
