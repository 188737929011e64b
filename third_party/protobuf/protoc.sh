#!/bin/sh
exec /usr/bin/protoc -I/usr/include "$@"
