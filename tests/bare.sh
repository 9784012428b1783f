#!/bin/sh
# Run a command as if none of the optional system packages were installed here: tests/bare.sh pytest tests/launch
# They are removed from a private copy of /usr, which ends with the command. Needs root and Linux; exit 125 where that is refused.
set -u

if [ "${BARE:-}" != inside ]; then
    unshare --mount true 2>/dev/null || { echo "tests/bare.sh: no mount namespace here (root and Linux are needed)" >&2; exit 125; }
    BARE=inside exec unshare --mount --propagation private "$0" "$@"
fi

layers=$(mktemp -d) && mount -t tmpfs none "$layers" && mkdir "$layers/upper" "$layers/work" &&
    mount -t overlay overlay -o "lowerdir=/usr,upperdir=$layers/upper,workdir=$layers/work" /usr ||
    { echo "tests/bare.sh: no overlay of /usr can be mounted here" >&2; exit 125; }

rm -f /usr/include/libaio.h /usr/lib/libaio* /usr/lib/*/libaio* /usr/lib64/libaio*
for program in ip pdsh ssh ssh-keygen sshd; do
    # Until none is left: some are linked into several folders.
    while place=$(PATH="$PATH:/usr/sbin:/sbin" command -v "$program"); do
        # Only /usr is a copy of our own.
        case $(readlink -f "$(dirname "$place")")/ in
            /usr/*) rm "$place" || exit 125 ;;
            *) echo "tests/bare.sh: $place lies outside /usr and cannot be hidden" >&2; exit 125 ;;
        esac
    done
done
unset BARE
exec "$@"
