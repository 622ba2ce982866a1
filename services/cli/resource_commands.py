"""The commands list, get, create, edit and archive: one implementation for every kind of resource."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from services.cli.console import WRONG, fail, lists_json, print_json, read
from services.cli.groups import new_group
from services.cli.kinds import APP, Kind
from services.cli.options import Archived, Fields, Json, Limit, Target

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from services.cli.resources import Resources


def resource_group(kind: Kind, *, by_app: bool, create_help: str, edit_help: str) -> typer.Typer:
    """Returns the group of commands on a kind. `by_app`: a list is of one app.

    The help texts say what a new one needs at least, and give an example of an edit.
    """
    group = new_group(f"Lists, shows, creates, edits and archives {kind.many}.")
    add_list(group, kind, by_app=by_app)
    add_get(group, kind)
    add_create(group, kind, create_help)
    add_edit(group, kind, edit_help)
    add_archive(group, kind)
    return group


def add_list(group: typer.Typer, kind: Kind, *, by_app: bool) -> None:
    """Adds the command that lists resources: of one app, or all."""
    if by_app:

        @group.command("list", help=f"Lists the {kind.many} of an app.")
        def list_of_app(
            app_id: str, archived: Archived = False, limit: Limit = 100, as_json: Json = False, target: Target = ""
        ) -> None:
            title = f"{capitalised(kind.many)} of {app_id}"
            list_resources(kind, title, limit, as_json, target, app_id=app_id, show_archived=archived)

    else:

        @group.command("list", help=f"Lists {kind.many}.")
        def list_all(
            archived: Archived = False, limit: Limit = 100, as_json: Json = False, target: Target = ""
        ) -> None:
            list_resources(kind, capitalised(kind.many), limit, as_json, target, show_archived=archived)


def add_get(group: typer.Typer, kind: Kind) -> None:
    """Adds the command that shows one resource."""

    @group.command("get", help=f"Shows one {kind.words}, with every field that is set.")
    def get(
        resource_id: Annotated[str, typer.Argument(metavar=kind.key[-1].upper())],
        as_json: Json = False,
        target: Target = "",
    ) -> None:
        show_resource(kind, as_json, target, resource_id)


def add_create(group: typer.Typer, kind: Kind, text: str) -> None:
    """Adds the command that creates one resource."""

    @group.command("create", help=text)
    def create(fields: Fields, as_json: Json = False, target: Target = "") -> None:
        resource, _ = fill(kind, fields)

        async def create_it(resources: "Resources") -> Any:
            return await resources.create(kind, resource)

        print_result("Created", kind, with_resources(kind, target, create_it), as_json)


def add_edit(group: typer.Typer, kind: Kind, text: str) -> None:
    """Adds the command that changes fields of one resource."""

    @group.command("edit", help=text)
    def edit(
        resource_id: Annotated[str, typer.Argument(metavar=kind.key[-1].upper())],
        fields: Fields,
        as_json: Json = False,
        target: Target = "",
    ) -> None:
        edit_resource(kind, fields, as_json, target, resource_id)


def add_archive(group: typer.Typer, kind: Kind) -> None:
    """Adds the command that archives one resource."""

    @group.command("archive", help=f"Archives one {kind.words}, for good: it never comes back under its id.")
    def archive(
        resource_id: Annotated[str, typer.Argument(metavar=kind.key[-1].upper())],
        as_json: Json = False,
        target: Target = "",
    ) -> None:
        archive_resource(kind, as_json, target, resource_id)


def list_resources(kind: Kind, title: str, limit: int, as_json: bool, target: str, **request: Any) -> list[Any]:
    """Prints the first resources that a list request names, and returns them."""

    async def list_them(resources: "Resources") -> tuple[list[Any], bool]:
        return await resources.some(kind, limit, **request)

    found: list[Any]
    found, has_more = with_resources(kind, target, list_them)
    if as_json:
        typer.echo(lists_json(**{kind.list_name: found}))
    else:
        from services.cli.resource_tables import print_resources

        print_resources(title, found, *kind.columns)
    if has_more:
        typer.echo(f"There are more than {limit}; --limit shows them.", err=True)
    return found


def show_resource(kind: Kind, as_json: bool, target: str, *key: str) -> None:
    """Prints one resource. Ends the command when there is none."""
    print_result("", kind, existing(kind, target, *key), as_json)


def existing(kind: Kind, target: str, *key: str) -> Any:
    """Returns one resource. Ends the command when there is none."""

    async def get_it(resources: "Resources") -> Any:
        if (found := await resources.get(kind, *key)) is None:
            await fail_unknown(resources, kind, *key)
        return found

    return with_resources(kind, target, get_it)


async def fail_unknown(resources: "Resources", kind: Kind, *key: str) -> NoReturn:
    """Ends the command: there is no such resource. It names those of the kind that are called nearly so."""
    from services.cli.fields import nearest

    is_by_app = "app_id" in kind.class_of(f"{kind.list_method}Request").DESCRIPTOR.fields_by_name
    parents: list[dict[str, str]] = [{}]
    if is_by_app and "app_id" in kind.key:
        parents = [{"app_id": key[0]}]
    elif is_by_app:  # the apps are tracker's to list
        parents = [{"app_id": app.app_id} for app in await resources.all(APP)] if kind.service == APP.service else []
    known = [kind.key_of(found)[-1] for parent in parents for found in await resources.all(kind, **parent)]
    fail(f"There is no {kind.words} {'/'.join(key)}{nearest(key[-1], known) or '.'}")


def edit_resource(kind: Kind, assignments: list[str], as_json: bool, target: str, *key: str) -> Any:
    """Changes fields of one resource, prints and returns it."""
    resource, paths = fill(kind, assignments, *key)

    async def update_it(resources: "Resources") -> Any:
        return await resources.update(kind, resource, paths)

    changed = with_resources(kind, target, update_it)
    print_result("Changed", kind, changed, as_json)
    return changed


def archive_resource(kind: Kind, as_json: bool, target: str, *key: str) -> None:
    """Archives one resource and prints it."""

    async def archive_it(resources: "Resources") -> Any:
        return await resources.archive(kind, *key)

    print_result("Archived", kind, with_resources(kind, target, archive_it), as_json)


def with_resources(kind: Kind, target: str, work: Any) -> Any:
    """Returns what `work` makes of the service that keeps this kind; a call that fails ends the command."""
    from services.cli.connections import run
    from services.cli.resources import resources_of

    async def main() -> Any:
        async with resources_of(kind.service, target) as resources:
            return await work(resources)

    return run(main())


def fill(kind: Kind, assignments: list[str], *key: str) -> tuple[Any, list[str]]:
    """Returns a resource with the fields of the command line, and their paths.

    A secret may be read from a file: `credentials=@FILE`. Ends the command naming all that do not fit.
    """
    from services.cli.field_reader import Fields as Reader
    from services.cli.fields import SECRET

    resource = kind.message(**dict(zip(kind.key, key, strict=False)))
    closed = dict.fromkeys(kind.output_only, "is set by the service")
    if key:
        closed |= dict.fromkeys(kind.key, "says which one it is, and never changes")
    reader = Reader(resource, closed)
    problems = [f"{each!r} should be FIELD=VALUE" for each in assignments if "=" not in each]
    given = [each.partition("=") for each in assignments if "=" in each]
    for path, _, text in given:
        if path.rpartition(".")[2] in SECRET and text.startswith("@"):
            reader.assign(path, read(Path(text[1:])), is_yaml=True)
        else:
            reader.assign(path, text)
    problems += [problem.message for problem in reader.problems]
    if problems:
        fail(*problems, code=WRONG)
    return resource, [path for path, _, _ in given]


def print_result(done: str, kind: Kind, resource: "Message", as_json: bool) -> None:
    """Prints a resource, and what was done to it."""
    if as_json:
        print_json(resource)
    else:
        from services.cli.resource_tables import print_resource

        print_resource(f"{done} {kind.words} {'/'.join(kind.key_of(resource))}".strip(), resource)


def capitalised(text: str) -> str:
    """Returns a text that begins with a capital."""
    return text[:1].upper() + text[1:]
