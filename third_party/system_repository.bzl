"""A repository whose targets stand for libraries that the system's packages installed."""

_HEADERS = """    hdrs = glob(["include/**"]),
    includes = ["include"],
"""

_LIBRARY = """
cc_library(
    name = {name},
{headers}    linkopts = {linkopts},
    visibility = ["//visibility:public"],
)
"""

def _system_repository_impl(repository_ctx):
    if repository_ctx.attr.include:
        repository_ctx.symlink(repository_ctx.attr.include, "include")
    packages = {}
    for label, linkopts in repository_ctx.attr.targets.items():
        package, _, name = label.rpartition(":")
        packages.setdefault(package, []).append(_LIBRARY.format(
            headers = _HEADERS if repository_ctx.attr.include else "",
            linkopts = repr(linkopts),
            name = repr(name),
        ))
    for package, libraries in packages.items():
        path = package + "/BUILD.bazel" if package else "BUILD.bazel"
        repository_ctx.file(path, "".join(libraries))

system_repository = repository_rule(
    implementation = _system_repository_impl,
    attrs = {
        "include": attr.string(
            doc = "Where the headers of the root package are, if not in the compiler's own search path.",
        ),
        "targets": attr.string_list_dict(
            mandatory = True,
            doc = "From 'package:name' to the linker's options.",
        ),
    },
)
