"""cc_grpc_library of gRPC's own repository, over the system's protoc and grpc_cpp_plugin."""

def _grpc_sources_impl(ctx):
    info = ctx.attr.proto[ProtoInfo]
    root = info.proto_source_root + "/"
    headers, sources, protos = [], [], []
    for proto in info.direct_sources:
        path = proto.path[len(root):] if proto.path.startswith(root) else proto.path
        stem = ctx.label.name + "/" + path[:-len(".proto")]
        headers.append(ctx.actions.declare_file(stem + ".grpc.pb.h"))
        sources.append(ctx.actions.declare_file(stem + ".grpc.pb.cc"))
        protos.append(path)
    output = "/".join([part for part in [ctx.bin_dir.path, ctx.label.workspace_root, ctx.label.package, ctx.label.name] if part])
    ctx.actions.run(
        executable = "/usr/bin/protoc",
        arguments = ["-I" + path for path in info.transitive_proto_path.to_list() + ["/usr/include"]] + [
            "--plugin=protoc-gen-grpc=/usr/bin/grpc_cpp_plugin",
            "--grpc_out=" + output,
        ] + protos,
        inputs = info.transitive_sources,
        outputs = headers + sources,
        mnemonic = "GrpcCpp",
    )
    return [
        DefaultInfo(files = depset(headers + sources)),
        OutputGroupInfo(headers = depset(headers), sources = depset(sources)),
    ]

_grpc_sources = rule(
    implementation = _grpc_sources_impl,
    attrs = {"proto": attr.label(mandatory = True, providers = [ProtoInfo])},
)

def cc_grpc_library(name, srcs, deps, grpc_only = True, **kwargs):
    """Generates the gRPC stubs of one proto_library.

    Args:
      name: the cc_library's name.
      srcs: the proto_library, as a list of one.
      deps: the cc_proto_library of the same protos, as a list.
      grpc_only: must be True; the messages come from deps.
      **kwargs: handed to cc_library.
    """
    if len(srcs) != 1 or not grpc_only:
        fail("cc_grpc_library takes one proto_library and grpc_only = True")
    _grpc_sources(name = name + "_sources", proto = srcs[0], visibility = ["//visibility:private"])
    native.filegroup(name = name + "_headers", srcs = [name + "_sources"], output_group = "headers")
    native.filegroup(name = name + "_cc", srcs = [name + "_sources"], output_group = "sources")
    native.cc_library(
        name = name,
        srcs = [name + "_cc"],
        hdrs = [name + "_headers"],
        includes = [name + "_sources"],
        deps = deps + ["@com_github_grpc_grpc//:grpc++"],
        **kwargs
    )
