"""Which cells of a notebook others need, told from the names that they give and read."""

import ast
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass
class Names:
    """What a cell does with the names of its notebook."""

    reads: set[str] = field(default_factory=set)
    """Those that it takes from cells before it, in functions too."""
    gives: set[str] = field(default_factory=set)
    firm: set[str] = field(default_factory=set)
    """Those that it gives as a function, a class or an import: reading them changes nothing."""
    changes: set[str] = field(default_factory=set)
    """Those whose attributes or elements it assigns."""
    touches: set[str] = field(default_factory=set)
    """Those that it reads, and those that the functions read which it reads."""


def names_in(source: str) -> Names:
    """Raises SyntaxError where `source` is not Python."""
    names = Names()
    for statement in ast.parse(source).body:
        _read(statement, names)
    return names


def needed_by(wanted: Iterable[int], sources: Mapping[int, str], unchanged: Collection[str] = ()) -> set[int]:
    """The cells of `wanted`, and all that they need; `sources` are the code cells of a notebook by their place.

    A name that a cell reads leads to the last cell before it that gives it, and, if it is a variable, to all those in between
    that read it too, themselves or in a function, since they may have changed what it stands for; but for those in
    `unchanged`. What is needed without a name, as a seed or an option for printing, is not seen: the cell then says something
    else.
    """
    names = {place: names_in(sources[place]) for place in sorted(sources)}
    for place, own in names.items():
        own.touches = own.reads.union(*(names[giver].touches for giver in _functions_of(place, names)))
    found = set(wanted)
    open_cells = list(found)
    while open_cells:
        cell = open_cells.pop()
        for name in names[cell].reads:
            new = set(_behind(name, cell, names, name in unchanged)) - found
            found |= new
            open_cells += new
    return found


def _behind(name: str, cell: int, names: Mapping[int, Names], unchanged: bool) -> Iterator[int]:
    last = _giver(name, cell, names)
    if last is None:
        return
    yield last
    if unchanged:
        return
    for place in names:
        if last < place < cell and (name in names[place].changes or name in names[place].touches - names[last].firm):
            yield place


def _giver(name: str, cell: int, names: Mapping[int, Names]) -> int | None:
    """The last cell before `cell` that gives the name; None: a builtin, or a name that comes later."""
    return max((place for place in names if place < cell and name in names[place].gives), default=None)


def _functions_of(cell: int, names: Mapping[int, Names]) -> set[int]:
    """The cells before `cell` whose functions and classes it reads."""
    givers = {name: _giver(name, cell, names) for name in names[cell].reads}
    return {giver for name, giver in givers.items() if giver is not None and name in names[giver].firm}


def _read(statement: ast.stmt, names: Names) -> None:
    """Add what a statement does, in the order in which it is done."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)) or not hasattr(statement, "body"):
        names.reads |= _read_by(statement) - names.gives
        given = _given_by(statement)
        names.gives |= given
        names.changes |= _changed(statement)
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)):
            names.firm |= given
        else:
            names.firm -= given
        return
    for _, value in ast.iter_fields(statement):  # for, while, if, with, try: its head, then its bodies
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.ExceptHandler):
                for inner in node.body:
                    _read(inner, names)
            elif isinstance(node, ast.stmt):
                _read(node, names)
            elif isinstance(node, ast.AST):
                names.reads |= _read_by(node) - names.gives
                names.gives |= _given_by(node)


def _read_by(node: ast.AST) -> set[str]:
    """The names that it reads, without those that a function or a comprehension has for itself."""
    if isinstance(node, ast.Name):
        return {node.id} if isinstance(node.ctx, ast.Load) else set()
    if isinstance(node, ast.FunctionDef):
        outside = _all(_read_by, [node.args, *node.decorator_list])
        return outside | (_all(_read_by, node.body) - _arguments(node.args) - _all(_given_by, node.body))
    read = _all(_read_by, ast.iter_child_nodes(node))
    if isinstance(node, ast.Lambda):
        return read - _arguments(node.args)
    if isinstance(node, COMPREHENSIONS):
        return read - _all(_given_by, [part.target for part in node.generators])
    if isinstance(node, ast.AugAssign):
        return read | _given_by(node.target)
    return read


def _given_by(node: ast.AST) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    if isinstance(node, ast.Name):
        return {node.id} if isinstance(node.ctx, ast.Store) else set()
    return set() if isinstance(node, COMPREHENSIONS) else _all(_given_by, ast.iter_child_nodes(node))


def _changed(statement: ast.stmt) -> set[str]:
    """a, where something is assigned to a.b, a[0] or a.b[0].c."""
    found: set[str] = set()
    for node in ast.walk(statement):
        if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
            whole: ast.expr = node
            while isinstance(whole, (ast.Attribute, ast.Subscript)):
                whole = whole.value
            found |= _read_by(whole)
    return found


def _arguments(arguments: ast.arguments) -> set[str]:
    return {node.arg for node in ast.walk(arguments) if isinstance(node, ast.arg)}


def _all(names_of: Callable[[ast.AST], set[str]], nodes: Iterable[ast.AST]) -> set[str]:
    return set().union(*map(names_of, nodes))
