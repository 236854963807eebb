#!/bin/sh
# Runs once, before everything else: the database's password, the keys of SuperLink and gateway, and those that sign
# releases. What exists is kept.
set -eu
umask 077

if [ ! -e /run/database/pgpass ]; then
  password=$(python3 -c 'import secrets; print(secrets.token_urlsafe(32))')
  printf '%s' "$password" >/run/database/password
  # libpq's own file of passwords: host:port:database:user:password
  printf '*:*:*:lamella:%s\n' "$password" >/run/database/pgpass
  echo "Made the database's password."
fi

if [ ! -e /run/authority/README.md ]; then
  lamella superlink keys --out /run/authority --host superlink --host gateway --nodes 0
fi

# Who may sign what. The keys of root, targets and releases lie in a volume that the API never sees, encrypted with a
# passphrase in another one.
if [ ! -e "$LAMELLA_HOME/metadata/timestamp.json" ]; then
  rm -rf "${LAMELLA_OFFLINE_KEYS:?}"/* # of a first start that was cut off; no device knows them
  python3 -c 'import secrets; print(secrets.token_urlsafe(32), end="")' >"$LAMELLA_PASSPHRASE_FILE"
  lamella trust init
fi

# Each server gets its own half and no more; the authority's key stays in its volume.
for host in superlink gateway; do
  for file in ca.crt "$host.crt" "$host.key"; do
    [ -e "/run/tls/$host/$file" ] || cp "/run/authority/$file" "/run/tls/$host/$file"
  done
done
