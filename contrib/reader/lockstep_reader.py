#!/usr/bin/env python3
"""Restores a Lockstep store with public packages alone. Written from docs/format.md: § and R are its."""
import argparse, collections, contextlib, functools, getpass, hashlib, hmac, io, itertools, json, os, re
import sqlite3, struct, sys, tempfile
from datetime import datetime, timezone
from pathlib import Path
import bech32, nacl.bindings as sodium, nacl.exceptions, nacl.pwhash.argon2id, pyrage, zstandard

def need(condition, otherwise):
    if not condition:
        raise ValueError(otherwise)

def sha256(data):
    return hashlib.sha256(data).digest()

def version_1(form, raw):
    found = json.loads(raw)
    need((found["format"], found["version"]) == (form, 1), f"{found['format']} version {found['version']}: not known")
    return found

def varint(stream):
    value, shift, byte = 0, 0, 128
    while byte >= 128:
        byte, = stream.read(1)
        value |= (byte & 127) << shift
        shift += 7
    return value

# ---- §5: the node's secret, slots, the key ring
def ask(what):
    tty = sys.stdin.isatty()
    return getpass.getpass(f"{what}: ").encode() if tty else sys.stdin.buffer.readline().rstrip(b"\r\n")

def seed_of(words, passphrase):
    return hashlib.pbkdf2_hmac("sha512", words, b"mnemonic" + passphrase, 2048, 64)

def secret_of(raw):
    """§5.5: of the bytes of hsm_secret."""
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

def identity_of(secret):
    """§5.4."""
    for info in (b"derived secrets\1", b"cln-lockstep/v1\1"):
        secret = hmac.digest(hmac.digest(bytes(32), secret, "sha256"), info, "sha256")
    text = bech32.bech32_encode("age-secret-key-", bech32.convertbits(secret, 8, 5))
    return pyrage.x25519.Identity.from_str(text.upper())

def key_ring(root, options):
    """R2: its JSON."""
    if options.key_file:
        need(not os.stat(options.key_file).st_mode & 0o077, f"{options.key_file}: group or others can read it")
        return Path(options.key_file).read_bytes()
    if options.words:
        secret = seed_of(b" ".join(ask("Words").lower().split()), ask("Their passphrase, or nothing"))
    else:
        secret = secret_of(Path(options.hsm_secret).read_bytes())
    identities = [identity_of(secret), identity_of(secret[:32])]
    return pyrage.decrypt((root / "keys/node.age").read_bytes(), identities)

# ---- §3, §6, §11.4: sealed objects
LOG = re.compile("log/([0-9a-f]{8})/([0-9a-f]{8}-[0-9a-f]{8})-([0-9a-f]{16})[.]seg")
SNAPSHOT = re.compile("snapshots/([0-9a-f]{8})/([0-9a-f]{16})-[0-9a-f]{8}-([0-9a-f]{8})[.]snap")
PART = re.compile("tail/([0-9a-f]{16})(-[0-9a-f]{8}-[0-9a-f]{8})?[.]part")
BEGINNING = re.compile("beginnings/([0-9a-f]{8})-([0-9a-f]{8}-[0-9a-f]{8})")
Record = collections.namedtuple("Record", "place seq chain plain")
Batch = collections.namedtuple("Batch", "place seq kind version session millis statements")

def name_of(kind, generation, epoch, seq, index):
    return (f"log/{generation:08x}/{epoch:08x}-{index:08x}-{seq:016x}.seg" if kind == 1 else
            f"snapshots/{generation:08x}/{seq:016x}-{epoch:08x}-{index:08x}.snap")

class Store:
    def __init__(self, root, options):
        need((root / "lockstep.json").is_file(), f"{root}: no store, for it has no lockstep.json")
        marker = version_1("lockstep", (root / "lockstep.json").read_bytes())
        ring = version_1("lockstep-keyring", key_ring(root, options))
        need(marker["store_id"].lower() == ring["store_id"].lower(), "the key ring of another store")
        self.keys = {sha256(b"lockstep key id" + key)[:4]: key for key in map(bytes.fromhex, ring["keys"])}
        self.files = {file.relative_to(root).as_posix(): file for file in root.glob("*/**/*") if file.is_file()}
        # The last of each generation's counts.
        self.begins = {found[1]: found[2] for found in filter(None, map(BEGINNING.fullmatch, sorted(self.files)))}
        self.parts = dict(self.segments_in_parts())

    def segments_in_parts(self):
        """§3.1: the names that they have once they are put together, and their bytes."""
        segments = collections.defaultdict(dict)
        for part in filter(None, map(PART.fullmatch, self.files)):
            if data := self.files[part[0]].read_bytes():
                segments[data[:128]][int(part[1], 16)] = data[128:]
        for header, frames in segments.items():
            numbers = struct.unpack_from("<10xB21xIIQI", header)
            missing = set(range(numbers[3], max(frames))) - frames.keys()
            if name_of(*numbers) not in self.files and not self.is_leftover(LOG.fullmatch(name_of(*numbers))):
                need(not missing, f"{name_of(*numbers)}: parts are missing: {sorted(missing)}")
                yield name_of(*numbers), header + b"".join(frames[seq] for seq in sorted(frames))

    def is_leftover(self, name):
        """R3"""
        return name.re is LOG and name[2] < self.begins.get(name[1], "")

    def names(self, form):
        names = filter(None, map(form.fullmatch, {*self.files, *self.parts}))
        return (name for name in names if not self.is_leftover(name))

    def unseal(self, name):
        """What the header is bound to, as a record without a plaintext; then a record for each frame."""
        need(name in self.parts or name in self.files, f"{name}: it is not there")
        data = self.parts.get(name) or self.files[name].read_bytes()
        is_log, good = LOG.fullmatch(name), data[:8] == b"LOCKSTEP" and sha256(data[:112])[:16] == data[112:128]
        end = len(data.rstrip(b"\0")) if is_log else len(data)
        if is_log and not good and end <= 128:
            return  # R7
        need(good, f"{name}: the header is damaged")
        version, kind, zero, key_id, *numbers, zeros, prev, nonce = struct.unpack_from(
            "<8xHBB4s16xIIQI12s32s16s", data)
        need(version == 1 and kind in (1, 2) and not zero and not any(zeros),
             f"{name}: kind {kind} of format version {version}; this program knows 1 and 2 of version 1")
        need(name_of(kind, *numbers) == name, f"{name}: the object of another name")
        need(key_id in self.keys, f"{name}: wrong key: sealed with {key_id.hex()}")
        yield Record(name, numbers[2] - 1, prev, None)
        at, chain = 128, sha256(data[:128])
        for seq in itertools.count(numbers[2]):
            if at >= end:
                return
            size, complement = struct.unpack("<II", data[at:at + 8].ljust(8, b"\0"))
            is_valid = size ^ complement == 2**32 - 1 and 16 <= size <= 2**30 + 16
            sealed, after, plain = data[at + 8:at + 8 + size], at + 8 + size, None
            count, place = struct.pack("<Q", seq), f"{name}: seq {seq}"
            with contextlib.suppress(nacl.exceptions.CryptoError):
                plain = is_valid and sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(
                    sealed, chain + count, nonce + count, self.keys[key_id])
            if not plain:
                torn = is_log and is_torn(data, at, end - at, seq, size if is_valid else None)
                need(torn, f"{place}, offset {at}: damaged")
                return
            mark, at, chain = count[:4] + b"END.", after + 8, sha256(chain + sealed)
            is_cut = is_log and mark.startswith(data[after:max(after, end)])
            need(is_cut or data[after:at] == mark, f"{place}, offset {after}: the end mark is damaged")
            yield Record(place, seq, chain, plain)

def is_torn(data, at, w, number, size):
    """R18 to R20: an interrupted write, not damage. `size` where the prefix is valid."""
    rest = data[at:]
    ahead = [int.from_bytes(mark[1], "little") - number for mark in re.finditer(rb"(?s)(?=(....)END\.)", rest[:w])]
    if any(0 < count % 2**32 <= w // 32 for count in ahead):
        return False
    length = w if size is None else size + 16
    cut = min(512 - at % 512, length)
    limit = 16 + min(~int.from_bytes(rest[4:8], "little") % 2**32, 2**30 + 16)
    sectors = [(rest[:cut], 4 if w <= limit else 8)]
    sectors += [(rest[start:min(start + 512, length)], 16) for start in range(cut, length, 512)]
    is_short = w < 8 if size is None else w <= size + 8
    return is_short or w <= length and any(len(sector) >= least and not any(sector) for sector, least in sectors)

# ---- §9: snapshots
def put_together(store, name, chain, file):
    """Writes what the snapshot is built on, then its own pages. Its meta."""
    records, given, pages = store.unseal(name), 0, None
    bound, record = itertools.islice(records, 2)
    meta = dict(json.loads(record.plain[1:]), prev=bound.chain)
    size, parent = meta["page_size"], meta.get("parent")
    if parent:
        put_together(store, parent["name"], bytes.fromhex(parent["chain"]), file)
    file.truncate(size * meta["page_count"])
    for record in records:
        need(pages is None and record.plain[0] in (17, 18), f"{record.place}: frame kind {record.plain[0]}")
        if record.plain[0] == 18:
            pages = json.loads(record.plain[1:])["pages"]
            continue
        body = io.BytesIO(zstandard.ZstdDecompressor().decompressobj().decompress(record.plain[1:]))
        for page, in struct.iter_unpack("<I", body.read(4 * int.from_bytes(body.read(4), "little"))):
            file.seek((page - 1) * size)
            given += file.write(body.read(size)) // size
    need(given == pages == (pages if parent else meta["page_count"]), f"{name}: frames or pages are missing")
    need(chain in (None, record.chain), f"{name}: another chain than is named")
    file.flush()
    return meta

# ---- §11.2, §11.3: segments and records
def newest_history(store):
    """R3 to R6. The segments of the generation, in the order in which they were written."""
    names = sorted(store.names(LOG), key=lambda name: (name[2], name[3]))
    for newest in reversed(names):
        if len(list(itertools.islice(store.unseal(newest[0]), 2))) == 2:
            return [name for name in names if name[1] == newest[1]]
    raise ValueError("log: no segment holds a record")

def records_of(store, names):
    """R7 to R13, from the end. What the first segment is bound to, then all records that are not void."""
    kept, passed = [], []
    for name in reversed(names):
        found, damage = [], None
        try:
            found.extend(store.unseal(name))
        except ValueError as error:
            damage = error
        if damage and not (found and kept):
            raise damage
        if len(found) < 2:
            continue  # R9
        ends = [(record.seq, record.chain) for record in found[-2:]]
        bound = (kept[0].seq, kept[0].chain) if kept else ends[-1]
        if bound not in ends:
            what = f"seq {ends[1][0] + 1} to {bound[0]} are missing behind it, or two histories meet"
            need(len(found) == 2, damage or f"{name}: {what}")
            passed.append(ends[0])  # R12
            continue
        void = [end for end in ends[1:] if end != bound]  # R11
        need(all(end in ends and end not in void for end in passed), f"{name}: two histories meet behind it")
        kept, passed = found[:len(found) - len(void)] + kept[1:], []
    need(kept and not passed, "log: two histories meet, or it has no beginning")
    return kept

# ---- §8: batches
SPELLED = {
    b"\1": lambda value: b"%d" % varint(io.BytesIO(value)),
    b"\2": lambda value: b"'%s'" % value.replace(b"'", b"''"),
    b"\3": lambda value: b"x'%s'" % value.hex().encode()}

class Decoder:
    """The compressed stream and the shapes of one segment."""
    def __init__(self):
        self.stream, self.shapes = zstandard.ZstdDecompressor(max_window_size=2**19).decompressobj(), []

    def statements(self, body):
        batch = io.BytesIO(self.stream.decompress(body))
        found = [self.statement(batch, varint(batch)).decode() for _ in range(varint(batch))]
        need(not batch.read(1), "bytes are left over")
        return found

    def statement(self, batch, tag):
        if tag == 0:
            return batch.read(varint(batch))
        if tag == 1:
            self.shapes.append((re.split(rb"([\1\2\3])", batch.read(varint(batch))), []))
        parts, old = self.shapes[tag - 2]
        markers = parts[1::2]
        bits = int.from_bytes(batch.read((len(markers) + 7) // 8), "little") if old else -1
        new = [batch.read(varint(batch)) if bits >> at & 1 else old[at] for at in range(len(markers))]
        if sum(map(len, new)) <= 4096:
            old[:] = new
        made = list(parts)
        made[1::2] = [SPELLED[marker](value) for marker, value in zip(markers, new)]
        return b"".join(made)

def decided(records):
    """§7, R23. The batches, in the order in which they are executed."""
    held = []
    for place, seq, _, plain in records:
        kind, body = plain[0], plain[1:]
        need(1 <= kind <= 5, f"{place}: record kind {kind}; this program knows 1 to 5")
        if kind == 1:
            opened = json.loads(body)
            millis, session, decoder = opened["time"], opened["session"].lower(), Decoder()
        elif kind == 3:
            rewind = json.loads(body)
            need(not held or held[0].seq == rewind["seq"], f"{place}: a rewind of a batch that is not the newest")
            millis = max(millis, rewind["time"])
            yield from held[1:]
            held = []  # Behind a snapshot there may be none (R33).
        elif kind != 4:
            head = io.BytesIO(body)
            version = int.from_bytes(head.read(4), "little")
            millis += varint(head)
            batch = Batch(place, seq, kind, version, session, millis, decoder.statements(head.read()))
            if kind == 2:
                yield from held
                held = [batch]
            elif held:
                held.append(batch)
            else:
                yield batch
    yield from held

# ---- §11.5: the database
PRAGMAS = "foreign_keys", "defer_foreign_keys", "legacy_alter_table", "quick_check", "integrity_check"
FORBIDDEN = [getattr(sqlite3, f"SQLITE_{action}") for action in (
    "ATTACH", "DETACH", "TRANSACTION", "SAVEPOINT", "CREATE_VTABLE", "DROP_VTABLE")]

def allowed(action, name, *_):
    """R28. (No extension can be loaded in Python unless one asks for it.)"""
    denied = action in FORBIDDEN or action == sqlite3.SQLITE_PRAGMA and name.lower() not in PRAGMAS
    return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK

def set_clock(db, millis):
    """R27: SQLite's own functions, but `now` is what `millis` gives."""
    clock = sqlite3.connect(":memory:")
    def call(name, *values):
        now = datetime.fromtimestamp(millis() / 1000, timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        values = [now if str(value).lower() == "now" else value for value in values]
        return clock.execute(f"SELECT {name}({', '.join('?' * len(values))})", values).fetchone()[0]
    for name in ("strftime", "datetime", "date", "time", "julianday", "unixepoch"):
        db.create_function(name, -1, functools.partial(call, name))
    for word, name in (("current_timestamp", "datetime"), ("current_date", "date"), ("current_time", "time")):
        db.create_function(word, 0, functools.partial(call, name, "now"))

def execute(path, batches, version):
    """R24 to R29. The data_version then, which is as given before any transaction."""
    db, session, batch = sqlite3.connect(path, isolation_level=None, cached_statements=0), None, None
    db.executescript("PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY;")
    set_clock(db, lambda: batch.millis)
    for batch in batches:
        if batch.session != session:  # R24
            db.executescript("PRAGMA foreign_keys = ON; PRAGMA legacy_alter_table = OFF;")
        if batch.kind == 2:
            db.execute("BEGIN")
            version = batch.version
        session = batch.session
        db.set_authorizer(allowed)
        for sql in batch.statements:
            db.execute(sql).fetchall()
        db.set_authorizer(None)
        db.commit()
    found = db.execute("PRAGMA integrity_check").fetchall()
    need(found == [("ok",)], f"the database: integrity_check: {found}")
    if version is not None:
        (found,), = db.execute("SELECT intval FROM vars WHERE name = 'data_version'")
        need(found % 2**32 == version, f"the database: data_version is {found}, but {version} in the log")
    db.close()
    return version

def newest_snapshot(store, generation, file):
    """R30: its name, its seq and its meta."""
    names = [name for name in store.names(SNAPSHOT) if name[1] == generation and name[3] >= "8"]
    for name in sorted(names, key=lambda name: name[2], reverse=True):
        try:
            return name[0], int(name[2], 16), put_together(store, name[0], None, file)
        except Exception as error:
            print(f"lockstep_reader: passed over {name[0]}: {error}", file=sys.stderr)
    file.truncate(0)
    return "none", 0, {}

def restore(store, file):
    names = newest_history(store)
    snapshot, done, meta = newest_snapshot(store, names[0][1], file)
    seqs = [int(name[3], 16) for name in names]
    sure = [at for at, after in enumerate(seqs[1:] + [2**65]) if seqs[at] < done and seqs[at] + 2 <= after]  # R31
    root, *records = records_of(store, [name[0] for name in names[max(sure, default=0):]])
    if meta:  # R32
        need((done, meta["prev"]) in [(record.seq, record.chain) for record in (root, *records)],
             f"{snapshot}: of another log, or of more, or less, than is there")
    else:  # R14, R22
        start = json.loads(records[0].plain[1:]).get("start")
        need(start, f"{records[0].place}: the beginning of the generation is missing")
        if base := start.get("base"):
            meta = put_together(store, base["name"], bytes.fromhex(base["chain"]), file)
    batches = (batch for batch in decided(records) if batch.seq > done)  # R33
    version = execute(file.name, batches, meta.get("data_version"))
    print(f"position: generation {int(names[0][1], 16)}, seq {records[-1].seq}, chain {records[-1].chain.hex()}")
    print("snapshot:", snapshot)
    print("data_version:", "none" if version is None else version)

def main():
    parser = argparse.ArgumentParser(description="Restores the database that a Lockstep store holds.")
    parser.add_argument("store", type=Path, help="the folder of the backup")
    parser.add_argument("dest", type=Path, help="the database to make; must not be there")
    secret = parser.add_mutually_exclusive_group(required=True)
    secret.add_argument("--hsm-secret", metavar="FILE")
    secret.add_argument("--key-file", metavar="FILE")
    secret.add_argument("--words", action="store_true", help="asks for the words, then for their passphrase")
    options = parser.parse_args()
    dest = options.dest.absolute()
    need(not dest.exists(), f"{dest}: it is there already")
    with tempfile.NamedTemporaryFile(dir=dest.parent, prefix=dest.name + ".") as file:
        restore(Store(options.store, options), file)
        os.fsync(file.fileno())
        os.link(file.name, dest)

if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        sys.exit(f"lockstep_reader: {str(error) or repr(error)}")
