#!/usr/bin/env python3
"""Restores a Lockstep store with public packages alone. Written from docs/format.md: § and R are its.
usage: lockstep_reader.py STORE DEST SECRET, which is hsm_secret, backup.key, or - for words that are asked for"""
import collections, functools, getpass, hashlib, hmac, io, json, os, re, sqlite3, struct, sys, tempfile, time
from pathlib import Path
import bech32, nacl.bindings as sodium, nacl.exceptions, nacl.pwhash.argon2id, pyrage, zstandard

def need(condition, otherwise):
    if not condition:
        raise ValueError(otherwise)

def sha256(data):
    return hashlib.sha256(data).digest()

def varint(stream):
    byte, = stream.read(1)
    return byte if byte < 128 else byte - 128 + (varint(stream) << 7)

def ask(what):
    return (getpass.getpass(what + ": ").encode() if sys.stdin.isatty() else sys.stdin.buffer.readline().strip(b"\r\n"))

def seed_of(words, passphrase):
    words = b" ".join(words.lower().split())
    return hashlib.pbkdf2_hmac("sha512", words, b"mnemonic" + passphrase, 2048, 64)

def secret_of(raw):  # §5.5
    need(len(raw) >= 32 and raw != bytes(32), "a cut-off hsm_secret")
    if len(raw) == 32:
        return raw
    if len(raw) == 73:
        key = nacl.pwhash.argon2id.kdf(32, ask("Passphrase of hsm_secret"), b"c-lightning" + bytes(5), 3, 2**28)
        state = sodium.crypto_secretstream_xchacha20poly1305_state()
        sodium.crypto_secretstream_xchacha20poly1305_init_pull(state, raw[:24], key)
        return sodium.crypto_secretstream_xchacha20poly1305_pull(state, raw[24:])[0]
    plain = raw[:32] == bytes(32)
    seed = seed_of(raw[32:].split(b"\0")[0], b"" if plain else ask("Passphrase of the words"))
    need(plain or sha256(seed) == raw[:32], "not the passphrase of these words")
    return seed

def identity_of(secret):  # §5.4
    for info in (b"derived secrets\1", b"cln-lockstep/v1\1"):
        secret = hmac.digest(hmac.digest(bytes(32), secret, "sha256"), info, "sha256")
    text = bech32.bech32_encode("age-secret-key-", bech32.convertbits(secret, 8, 5))
    return pyrage.x25519.Identity.from_str(text.upper())

def key_ring(root, source):  # R2
    raw = None if str(source) == "-" else source.read_bytes()
    if raw and b"lockstep-keyring" in raw:
        need(not source.stat().st_mode & 0o077, f"{source}: group or others can read it")
        return json.loads(raw)
    secret = secret_of(raw) if raw is not None else seed_of(ask("Words"), ask("Their passphrase, or nothing"))
    identities = [identity_of(secret), identity_of(secret[:32])]
    return json.loads(pyrage.decrypt((root / "keys/node.age").read_bytes(), identities))

LOG = re.compile("log/([0-9a-f]{8})/([0-9a-f]{8}-[0-9a-f]{8})-[0-9a-f]{16}[.]seg")
SNAPSHOT = re.compile("snapshots/([0-9a-f]{8})/([0-9a-f]{16})-[0-9a-f]{8}-[89a-f][0-9a-f]{7}[.]snap")
PART = re.compile("tail/[0-9a-f]{16}(-[0-9a-f]{8}-[0-9a-f]{8})?[.]part")
Record = collections.namedtuple("Record", "place at plain")  # `at`: seq and chain

def name_of(kind, generation, epoch, seq, index):  # §3
    return (f"log/{generation:08x}/{epoch:08x}-{index:08x}-{seq:016x}.seg" if kind == 1 else
            f"snapshots/{generation:08x}/{seq:016x}-{epoch:08x}-{index:08x}.snap")

class Store:
    def __init__(self, root, source):
        marker, ring = json.loads((root / "lockstep.json").read_bytes()), key_ring(root, source)
        forms = [(found["format"], found["version"]) for found in (marker, ring)]
        need(forms == [("lockstep", 1), ("lockstep-keyring", 1)], f"forms that are not known: {forms}")
        self.id = bytes.fromhex(ring["store_id"])
        need(bytes.fromhex(marker["store_id"]) == self.id, "the key ring of another store")
        self.keys = {sha256(b"lockstep key id" + key)[:4]: key for key in map(bytes.fromhex, ring["keys"])}
        files = filter(Path.is_file, root.glob("*/**/*"))
        self.objects = {file.relative_to(root).as_posix(): file.read_bytes for file in files}
        self.begins = {name[11:19]: name[20:] for name in sorted(self.objects) if name.startswith("beginnings/")}  # R3
        segments = collections.defaultdict(list)  # §3.1. Behind a missing part none opens.
        for part in sorted(filter(PART.fullmatch, self.objects)):
            if data := self.objects[part]():
                segments[data[:128]].append(data[128:])
        for header, frames in segments.items():
            name = name_of(1, *struct.unpack_from("<32xIIQI", header))
            self.objects.setdefault(name, functools.partial(bytes, b"".join([header, *frames])))

    def unseal(self, name):
        """§6: what the header is bound to, as a record without a plaintext; then a record for each frame."""
        need(name in self.objects, f"{name}: it is not there")
        data, is_log = self.objects[name](), name.startswith("log/")
        end = len(data.rstrip(b"\0")) if is_log else len(data)
        is_good = data[:8] == b"LOCKSTEP" and sha256(data[:112])[:16] == data[112:128]
        if is_log and not is_good and end <= 128:
            return  # R7
        need(is_good, f"{name}: the header is damaged")
        version, kind, zero, key_id, store_id, *numbers, zeros, prev, prefix = struct.unpack_from(
            "<8xHBB4s16sIIQI12s32s16s", data)
        need(version == 1 and kind in (1, 2) and not zero and not any(zeros),
             f"{name}: kind {kind} of format version {version}; this program knows 1 and 2 of version 1")
        need(store_id == self.id and name_of(kind, *numbers) == name, f"{name}: an object of another store or name")
        need(key_id in self.keys, f"{name}: wrong key: sealed with {key_id.hex()}")
        seq, at, chain = numbers[2], 128, sha256(data[:128])
        yield Record(name, (seq - 1, prev), None)
        while at < end:
            place, number = f"{name}: seq {seq}", struct.pack("<Q", seq)
            size, complement = struct.unpack("<II", data[at:at + 8].ljust(8, b"\0"))
            if size ^ complement != 2**32 - 1 or not 16 <= size <= 2**30 + 16:
                size = 0
            sealed, mark, behind = data[at + 8:at + 8 + size].ljust(16, b"\0"), number[:4] + b"END.", at + 8 + size
            try:
                plain = sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(
                    sealed, chain + number, prefix + number, self.keys[key_id])
            except nacl.exceptions.CryptoError:
                need(is_log and is_torn(data[at:], at, end - at, seq, size), f"{place}, offset {at}: damaged")
                return
            is_cut = is_log and mark.startswith(data[behind:max(behind, end)])
            need(is_cut or data[behind:behind + 8] == mark, f"{place}, offset {behind}: the end mark is damaged")
            at, chain = behind + 8, sha256(chain + sealed)
            yield Record(place, (seq, chain), plain)
            seq += 1

def is_torn(rest, at, w, number, size):  # R18 to R20: not damaged. `size` is 0 where the prefix is not valid
    ahead = [int.from_bytes(mark[1], "little") - number for mark in re.finditer(rb"(?s)(?=(....)END\.)", rest[:w])]
    length, is_short = (size + 16, w <= size + 8) if size else (w, w < 8)
    limit = 16 + min(~int.from_bytes(rest[4:8], "little") % 2**32, 2**30 + 16)
    sectors = [(rest[max(start, 0):min(start + 512, length)], 16 if start > 0 else 4 if w <= limit else 8)
               for start in range(-(at % 512), length, 512)]
    is_lost = w <= length and any(len(sector) >= least and not any(sector) for sector, least in sectors)
    return (is_short or is_lost) and not any(0 < count % 2**32 <= w // 32 for count in ahead)

def put_together(store, name, chain, file):
    """§9: writes what the snapshot is built on, then its own pages. Its meta."""
    bound, first, *frames, last = store.unseal(name)
    kinds = [record.plain[0] for record in (first, *frames, last)]
    need(kinds in [[begin, *[17] * len(frames), 18] for begin in (16, 19)], f"{name}: frames of the kinds {kinds}")
    need(chain in (None, last.at[1]), f"{name}: another chain than is named")
    meta = dict(json.loads(first.plain[1:]), prev=bound.at[1])
    size, parent, given = meta["page_size"], meta.get("parent"), 0
    if parent:
        put_together(store, parent["name"], bytes.fromhex(parent["chain"]), file)
    file.truncate(size * meta["page_count"])
    for frame in frames:
        body = io.BytesIO(zstandard.ZstdDecompressor().decompressobj().decompress(frame.plain[1:]))
        for page, in struct.iter_unpack("<I", body.read(4 * int.from_bytes(body.read(4), "little"))):
            file.seek((page - 1) * size)
            given += file.write(body.read(size)) // size
    need(given == json.loads(last.plain[1:])["pages"], f"{name}: pages are missing")
    need(parent or given == meta["page_count"], f"{name}: a base of {given} pages, not {meta['page_count']}")
    return meta

def newest_snapshot(store, generation, file):  # R30: its name, its seq and its meta
    names = [name for name in map(SNAPSHOT.fullmatch, store.objects) if name and name[1] == generation]
    for name in sorted(names, key=lambda name: name[2], reverse=True):
        try:
            return name[0], int(name[2], 16), put_together(store, name[0], None, file)
        except Exception as error:
            print(f"lockstep_reader: passed over {name[0]}: {error}", file=sys.stderr)
    file.truncate(0)
    return "none", 0, {}

def history(store):
    """R3 to R13, from the end. With each segment its generation, what it is bound to, and all from there on."""
    kept, passed, generation = [], [], None
    for name in sorted(filter(None, map(LOG.fullmatch, store.objects)), key=lambda name: name[2], reverse=True):
        if generation not in (None, name[1]) or name[2] < store.begins.get(name[1], ""):
            continue
        found, damage = [], None
        try:
            found.extend(store.unseal(name[0]))
        except ValueError as error:
            damage = error
        need(not damage or found and kept, damage)
        if len(found) < 2:
            continue  # R9
        ends = [record.at for record in found[-2:]]
        bound = kept[0].at if kept else ends[1]
        if bound not in ends:  # R12, R13
            need(len(found) == 2, damage or f"{name[0]}: the next one is bound to seq {bound[0]}, not to its end")
            passed = [end for end in passed if end != ends[1]] + ends[:1]
            continue
        need(all(end in ends for end in passed), f"{name[0]}: two histories meet behind it")
        good = len(found) - (bound != ends[1])  # R11
        kept, passed, generation = found[:good] + kept[1:], [], name[1]
        yield generation, kept
    need(kept and not passed, "log: it has no beginning")

SPELLED = {
    b"\1": lambda value: b"%d" % varint(io.BytesIO(value)),
    b"\2": lambda value: b"'%s'" % value.replace(b"'", b"''"),
    b"\3": lambda value: b"x'%s'" % value.hex().encode()}

def statements_of(batch, shapes):  # §8.2. `shapes`: those of the segment, each with its remembered values
    for _ in range(varint(batch)):
        tag = varint(batch)
        if tag == 0:
            yield batch.read(varint(batch)).decode()
            continue
        if tag == 1:
            shapes.append((re.split(rb"([\1\2\3])", batch.read(varint(batch))), []))
        parts, old = shapes[tag - 2]
        markers, made = parts[1::2], list(parts)
        bits = int.from_bytes(batch.read((len(markers) + 7) // 8), "little") if old else -1
        new = [batch.read(varint(batch)) if bits >> at & 1 else old[at] for at in range(len(markers))]
        if sum(map(len, new)) <= 4096:
            old[:] = new
        made[1::2] = [SPELLED[marker](value) for marker, value in zip(markers, new)]
        yield b"".join(made).decode()
    need(not batch.read(1), "bytes are left over behind a batch")

def batches_of(records, done):  # §7, R23, R33: those behind `done` that count
    newest, void = None, {json.loads(record.plain[1:])["seq"] for record in records if record.plain[0] == 3}
    for place, (seq, _), plain in records:
        kind, body = plain[0], io.BytesIO(plain[1:])
        need(1 <= kind <= 5, f"{place}: record kind {kind}; this program knows 1 to 5")
        if kind == 1:
            opened = json.load(body)
            need(seq == records[0].at[0] or not opened.get("start"), f"{place}: a second beginning")  # R14
            millis, session, shapes = opened["time"], opened["session"].lower(), []
            stream = zstandard.ZstdDecompressor(max_window_size=2**19).decompressobj()
        elif kind == 3:
            rewind = json.load(body)
            is_known = rewind["seq"] == newest != done or newest is None and rewind["seq"] < done
            need(is_known, f"{place}: a rewind of a batch that is not the newest")
            millis, newest = max(millis, rewind["time"]), None
        elif kind != 4:
            version, millis = int.from_bytes(body.read(4), "little"), millis + varint(body)
            statements = list(statements_of(io.BytesIO(stream.decompress(body.read())), shapes))
            newest = seq if kind == 2 else newest
            if seq > done and seq not in void:
                yield kind, version, session, millis, statements

PRAGMAS = "foreign_keys", "defer_foreign_keys", "legacy_alter_table", "quick_check", "integrity_check"
FORBIDDEN = [getattr(sqlite3, f"SQLITE_{action}") for action in (
    "ATTACH", "DETACH", "TRANSACTION", "SAVEPOINT", "CREATE_VTABLE", "DROP_VTABLE")]

def allowed(action, name, *_):  # R28. (No extension can be loaded in Python unless one asks for it.)
    denied = action in FORBIDDEN or action == sqlite3.SQLITE_PRAGMA and name.lower() not in PRAGMAS
    return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK

def set_clock(db, millis):  # R27: SQLite's own functions, but `now` is what `millis` gives
    clock = sqlite3.connect(":memory:")
    def call(name, *values):
        now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(millis() // 1000)) + f".{millis() % 1000:03}"
        values = [now if str(value).lower() == "now" else value for value in values]
        return clock.execute(f"SELECT {name}({', '.join('?' * len(values))})", values).fetchone()[0]
    for name in ("strftime", "datetime", "date", "time", "julianday", "unixepoch"):
        db.create_function(name, -1, functools.partial(call, name))
    for word, name in (("current_timestamp", "datetime"), ("current_date", "date"), ("current_time", "time")):
        db.create_function(word, 0, functools.partial(call, name, "now"))

def execute(path, batches, version):  # R24 to R29. The data_version then; before any transaction as given
    db, before = sqlite3.connect(path, isolation_level=None, cached_statements=0), None
    db.executescript("PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY;")
    set_clock(db, lambda: millis)
    for kind, claimed, session, millis, statements in batches:
        if session != before:  # R24
            db.executescript("PRAGMA foreign_keys = ON; PRAGMA legacy_alter_table = OFF;")
            before = session
        if kind == 2:
            db.execute("BEGIN")
            version = claimed
        db.set_authorizer(allowed)
        for sql in statements:
            db.execute(sql).fetchall()
        db.set_authorizer(None)
        db.commit()
    need(db.execute("PRAGMA integrity_check").fetchall() == [("ok",)], "the database: integrity_check failed")
    if version is not None:
        (found,), = db.execute("SELECT intval FROM vars WHERE name = 'data_version'")
        need(found % 2**32 == version, f"the database: data_version is {found}, but {version} in the log")
    db.close()
    return version

def restore(store, file):
    meta = None
    for generation, (root, *records) in history(store):
        if meta is None:
            snapshot, done, meta = newest_snapshot(store, generation, file)
        if root.at[0] + 1 < done:
            break  # R31
    if meta:  # R32
        need((done, meta["prev"]) in [record.at for record in (root, *records)], f"{snapshot}: not of this log")
    else:  # R14, R22
        start = json.loads(records[0].plain[1:]).get("start")
        need(start, f"{records[0].place}: the beginning of the generation is missing")
        if base := start.get("base"):
            meta = put_together(store, base["name"], bytes.fromhex(base["chain"]), file)
    version = execute(file.name, batches_of(records, done), meta.get("data_version"))
    seq, chain = records[-1].at
    print(f"position: generation {int(generation, 16)}, seq {seq}, chain {chain.hex()}\nsnapshot: {snapshot}")
    print("data_version:", "none" if version is None else version)

def main(root, dest, source):
    need(not dest.exists(), f"{dest}: it is there already")
    with tempfile.NamedTemporaryFile(dir=dest.parent, prefix=dest.name + ".", buffering=0) as file:
        restore(Store(root, source), file)
        os.fsync(file.fileno())
        os.link(file.name, dest)

if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:])) if len(sys.argv) == 4 else sys.exit(__doc__)
    except Exception as error:
        sys.exit(f"lockstep_reader: {str(error) or repr(error)}")
