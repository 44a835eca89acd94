#!/usr/bin/env python3
"""Restores a Lockstep store with public packages alone. Written from docs/format.md: § and R are its."""
import argparse, collections, contextlib, getpass, hashlib, hmac, io, json, os, re, sqlite3, struct, sys, tempfile
from datetime import datetime, timedelta
from pathlib import Path
import bech32, nacl.bindings as sodium, nacl.exceptions, nacl.pwhash.argon2id, pyrage, zstandard

LONGEST, OPTIONAL = 2**30, type(None)

class Refused(ValueError):
    pass

def need(condition, otherwise):
    if not condition:
        raise Refused(otherwise)

@contextlib.contextmanager
def within(place):
    """Says where it was."""
    try:
        yield
    except (ValueError, TypeError, ArithmeticError, RecursionError, sqlite3.Error, sqlite3.Warning,
            zstandard.ZstdError) as error:
        raise Refused(f"{place}: {error}") from None

def sha256(data):
    return hashlib.sha256(data).digest()

# ---- §2: JSON, hex, varints
def fields(raw, **types):
    """A JSON object with these keys, once each."""
    def once(pairs):  # A key given twice gets a value of a type that JSON does not have.
        return {key: value if [key for key, _ in pairs].count(key) == 1 else () for key, value in pairs}
    found = raw if isinstance(raw, dict) else json.loads(raw.decode(), object_pairs_hook=once)
    for key, kinds in types.items():
        value = found.setdefault(key) if type(found) is dict else ()
        good = isinstance(value, kinds) and type(value) is not bool and not (type(value) is int and value < 0)
        need(good, f"{key} is missing or not what it must be")
    return found

def unhex(text, size):
    need(re.fullmatch(r"[0-9a-fA-F]{%d}" % (2 * size), str(text)), f"not {size} bytes in hex")
    return bytes.fromhex(text)

def store_id_of(raw, form):
    found = fields(raw, format=str, version=int)
    need(found["format"] == form and found["version"] == 1,
         f"{found['format']!r} version {found['version']}; this program knows {form!r} version 1")
    return unhex(found.get("store_id"), 16)

class Cursor(io.BytesIO):
    def take(self, count):
        found = self.read(count)
        need(len(found) == count, "bytes are missing")
        return found

    def varint(self):
        value, shift, byte = 0, 0, 128
        while byte >= 128:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            need(value < 2**64 and shift < 64 and (byte or not shift), "a malformed varint")
            shift += 7
        return value

    def bytes(self):
        return self.take(self.varint())

    def end(self):
        need(not self.read(1), "bytes are left over")

# ---- §5: the node's secret, slots, the key ring
def node_identity(secret):
    """§5.4."""
    for info in (b"derived secrets\1", b"cln-lockstep/v1\1"):
        secret = hmac.digest(hmac.digest(bytes(32), secret, "sha256"), info, "sha256")
    return bech32.bech32_encode("age-secret-key-", bech32.convertbits(secret, 8, 5)).upper()

def seed_of(words, passphrase):
    return hashlib.pbkdf2_hmac("sha512", words, b"mnemonic" + passphrase, 2048, 64)

def ask(what):
    return (getpass.getpass(what + ": ").encode() if sys.stdin.isatty()
            else sys.stdin.buffer.readline().rstrip(b"\r\n"))

def hsm_secret(raw):
    """§5.5."""
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

def key_ring(path, store_id, options):
    """R2. The data keys by id."""
    if options.key_file:
        place, raw = options.key_file, Path(options.key_file).read_bytes()
        need(not os.stat(place).st_mode & 0o077, f"{place}: group or others can read it")
    else:
        words = options.words and b" ".join(ask("Words").lower().split())
        seed = (seed_of(words, ask("Their passphrase, or nothing")) if words
                else hsm_secret(Path(options.hsm_secret).read_bytes()))
        identities = [pyrage.x25519.Identity.from_str(node_identity(secret)) for secret in (seed, seed[:32])]
        place, raw = "keys/node.age", pyrage.decrypt((path / "keys/node.age").read_bytes(), identities)
    with within(place):
        need(store_id_of(raw, "lockstep-keyring") == store_id, "the key ring of another store")
        keys = [unhex(key, 32) for key in fields(raw, keys=list)["keys"]]
    return {sha256(b"lockstep key id" + key)[:4]: key for key in keys}

# ---- §3, §6: sealed objects
Store = collections.namedtuple("Store", "path id keys parts")
Name = collections.namedtuple("Name", "text kind generation epoch seq index")
Record = collections.namedtuple("Record", "place first seq plain chain")
Batch = collections.namedtuple("Batch", "place kind session seq version millis statements")
FORMS = {kind: re.compile(form.replace("#", "[0-9a-f]")) for kind, form in (
    (1, r"log/(?P<generation>#{8})/(?P<epoch>#{8})-(?P<index>#{8})-(?P<seq>#{16})\.seg"),
    (2, r"snapshots/(?P<generation>#{8})/(?P<seq>#{16})-(?P<epoch>#{8})-(?P<index>#{8})\.snap"))}

def listed(store, kind):
    texts = {file.relative_to(store.path).as_posix() for file in store.path.glob("*/*/*")} | store.parts.keys()
    return [name for name in (name_of(text, kind) for text in texts) if name]

def segments_in_parts(path):
    """§3.1: their bytes, by the names that they have once they are put together."""
    parts, whole = collections.defaultdict(list), {}
    for file in sorted(path.glob("tail/*.part")):
        if re.fullmatch("[0-9a-f]{16}(-[0-9a-f]{8}){0,2}[.]part", file.name) and (data := file.read_bytes()):
            parts[data[:128]].append((int(file.name[:16], 16), data[128:]))
    for header, frames in parts.items():
        need(len(header) == 128, "tail: a part without a header")
        generation, epoch, seq, index = struct.unpack_from("<32xIIQI", header)
        text = f"log/{generation:08x}/{epoch:08x}-{index:08x}-{seq:016x}.seg"
        if not (path / text).is_file():
            missing = set(range(seq, frames[-1][0])) - {number for number, _ in frames}
            need(not missing, f"{text}: parts are missing: {sorted(missing)}")
            whole[text] = header + b"".join(frame for _, frame in frames)
    return whole

def name_of(text, kind):
    match = FORMS[kind].fullmatch(text)
    return match and Name(text, kind, **{key: int(digits, 16) for key, digits in match.groupdict().items()})

def unseal(store, name):
    """First what its header is bound to, without a plaintext; then number, plaintext, chain of each frame.
    In a segment an interrupted write is forgiven (§11.4), and a damaged header with nothing behind it (R7)."""
    segment, (path, store_id, keys, parts) = name.kind == 1, store
    with within(name.text):
        need(name.text in parts or (path / name.text).is_file(), "it is not there")
        data = parts.get(name.text) or (path / name.text).read_bytes()
        good = len(data) >= 128 and data[:8] == b"LOCKSTEP" and sha256(data[:112])[:16] == data[112:128]
        if segment and not good and not any(data[128:]):
            return
        need(good, "offset 0: the header is damaged")
        version, kind, zero, key_id, of, *numbers, zeros, prev, nonce = struct.unpack_from(
            "<8xHBB4s16sIIQI12s32s16s", data)
        need(version == 1, f"format version {version}; this program knows 1")
        need(kind in (1, 2, 3, 4), f"object kind {kind}; this program knows 1 to 4")
        if segment and not any(data[128:]) and (zero or any(zeros)):
            return
        need(not zero and not any(zeros), "offset 0: reserved bytes are not zero")
        need(of == store_id, "an object of another store")
        need((kind, *numbers) == name[1:], "the object of another name")
        need(key_id in keys, f"wrong key: sealed with {key_id.hex()}")
        yield name.seq - 1, None, prev
        number, at, chain = name.seq, 128, sha256(data[:128])
        end = len(data.rstrip(b"\0")) if segment else len(data)
        while at < end:
            start, plain = at + 8, None
            size, complement = struct.unpack("<II", data[at:start].ljust(8, b"\0"))
            valid = size ^ complement == 0xFFFFFFFF and 16 <= size <= LONGEST + 16
            after, mark, count = start + size, struct.pack("<I4s", number % 2**32, b"END."), struct.pack("<Q", number)
            with contextlib.suppress(nacl.exceptions.CryptoError):
                plain = valid and sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(
                    data[start:after], chain + count, nonce + count, keys[key_id])
            if not plain:
                if segment and interrupted(data, at, number, end - at, size if valid else None):
                    return
                raise Refused(f"seq {number}, offset {at}: damaged")
            cut = segment and mark.startswith(data[after:max(after, end)])
            need(cut or data[after:after + 8] == mark, f"seq {number}, offset {after}: the end mark is damaged")
            at, chain = after + 8, sha256(chain + data[start:after])
            yield number, plain, chain
            number += 1

def interrupted(data, offset, number, w, size):
    """R18 to R20; w as in §11.4, size where the prefix is valid."""
    rest = data[offset:]
    for mark in re.finditer(rb"(?s)(?=(....)END\.)", rest[:w]):
        if 0 < (int.from_bytes(mark[1], "little") - number) % 2**32 <= w // 32:
            return False
    if w < 8 if size is None else w <= size + 8:
        return True
    stretch = w if size is None else size + 16
    first = min(512 - offset % 512, stretch)
    most = min(~int.from_bytes(rest[4:8], "little") % 2**32, LONGEST + 16)
    parts = [(4 if w <= 16 + most else 8, rest[:first])]
    parts += [(16, rest[at:min(at + 512, stretch)]) for at in range(first, stretch, 512)]
    return w <= stretch and any(len(part) >= least and not any(part) for least, part in parts)

def decompress(stream, body, whole):
    found = stream.decompress(body)
    need(stream.eof == whole and not stream.unused_data and len(found) <= LONGEST, "not one zstd frame, or too much")
    return found

# ---- §9: snapshots
def snapshot(store, name, chain):
    """Its meta, then the place in the file and the bytes of each page. The chain is that which something names."""
    (_, _, prev), *frames = unseal(store, name)
    meta, seen, end = None, set(), None
    for number, plain, after in frames:
        kind, body = plain[0], plain[1:]
        with within(f"{name.text}: frame {number - name.seq}"):
            need(16 <= kind <= 19, f"frame kind {kind}; this program knows 16 to 19")
            need(end is None and (kind in (16, 19)) == (meta is None), "a frame out of order")
            if kind == 17:
                pages = Cursor(decompress(zstandard.ZstdDecompressor().decompressobj(), body, True))
                for page, in struct.iter_unpack("<I", pages.take(4 * int.from_bytes(pages.take(4), "little"))):
                    need(1 <= page <= count and page not in seen, f"page {page}: given twice, or none")
                    seen.add(page)
                    yield (page - 1) * size, pages.take(size)
                pages.end()
            elif kind == 18:
                end = fields(body, pages=int)["pages"]
            else:
                meta = fields(body, page_size=int, page_count=int, data_version=(int, OPTIONAL))
                size, count, meta["prev"] = meta["page_size"], meta["page_count"], prev
                meta["parent"] = fields(body, parent=dict)["parent"] if kind == 19 else None
                need(size in [2**n for n in range(9, 17)] and count < 2**32, "no page size or count")
                need(kind == 16 or name.index >= 2**31, "a generation begins with a delta")
                yield meta
    with within(name.text):
        need(end == len(seen) and (meta["parent"] or end == count), "frames or pages are missing")
        need(chain in (None, after), "another chain than is named")

def named(link, generation):
    """Name and chain where something names a snapshot, else none."""
    found = name_of(fields(link, name=str, chain=str)["name"], 2) if link else None
    need(not link or found and found.generation == generation, f"{link} is no snapshot of this generation")
    return (found, unhex(link["chain"], 32)) if link else (None, None)

def put_together(store, name, chain, file):
    """Writes base and deltas, gives the meta of the newest."""
    links, metas = [], []
    while name:
        links.append(snapshot(store, name, chain))
        metas.append(next(links[-1]))
        need(metas[-1]["page_size"] == metas[0]["page_size"], f"{name.text}: page sizes differ")
        seq, (name, chain) = name.seq, named(metas[-1]["parent"], name.generation)
        need(not name or name.seq < seq, f"{name and name.text}: a parent that is not older")
    for meta, pages in zip(reversed(metas), reversed(links)):
        file.truncate(meta["page_count"] * meta["page_size"])
        for place, page in pages:
            file.seek(place)
            file.write(page)
    file.flush()
    return metas[0]

def newest_snapshot(store, generation, file):
    """R30. Name and meta of the newest that compaction made and that can be put together."""
    for name in sorted(listed(store, 2), key=lambda name: (name.seq, name.text), reverse=True):
        if name.generation == generation and name.index >= 2**31:
            try:
                return name, put_together(store, name, None, file)
            except Refused as refused:
                print(f"lockstep_reader: passed over a snapshot: {refused}", file=sys.stderr)
    file.truncate(0)
    return None, None

# ---- §11.2, §11.3: segments and records
def newest_generation(store):
    """R3 to R6. The generation, and the names of its segments in order."""
    names = sorted(listed(store, 1), key=lambda name: (name.epoch, name.index, name.seq))
    for newest in reversed(names):
        if len([item for item, _ in zip(unseal(store, newest), range(2))]) == 2:
            return newest.generation, [name for name in names if name.generation == newest.generation]
    raise Refused("log: no segment holds a record")

def records_of(store, names):
    """R7 to R13. What the first segment is bound to, and what is not void."""
    records, undo, damage, root = [], [], None, None
    for name in names:
        read, error, bound = [], None, None
        try:
            for seq, plain, chain in unseal(store, name):
                bound = bound or (seq, chain)
                read += [Record(f"{name.text}: seq {seq}", not read, seq, plain, chain)] if plain else []
        except Refused as refused:
            error = refused
            if not bound:
                raise
        root = root or read and bound
        while read:
            before, last = ([root, root] + [(record.seq, record.chain) for record in records[-2:]])[-2:]
            voids = bound != last
            if not voids or records and bound == before:  # R10, R11
                undo.append(records if voids and len(read) == 1 else None)
                records, damage = records[:len(records) - voids] + read, None
                break
            if not undo or undo[-1] is None:  # R13
                gap = f"seq {last[0] + 1} to {bound[0]} are missing before it"
                raise damage or Refused(f"{name.text}: {gap if bound[0] > last[0] else 'two histories meet'}")
            records = undo.pop()  # R12
        damage = damage or error
    if damage:
        raise damage
    return root, records

# ---- §8: batches
class Decoder:
    """The compressed stream and the shapes of one segment."""
    def __init__(self):
        self.stream, self.shapes = zstandard.ZstdDecompressor(max_window_size=2**19).decompressobj(), []

    def batch(self, body):
        batch, statements = Cursor(decompress(self.stream, body, False)), []
        for _ in range(batch.varint()):
            tag = batch.varint()
            if tag == 1:
                shape = batch.bytes()
                need(len(shape) <= 65536 and len(self.shapes) < 4096 and 0 not in shape, "a bad shape")
                self.shapes.append([re.split(rb"([\1\2\3])", shape), None])
            need(tag < 2 + len(self.shapes), "a shape that is not there")
            statements.append(self.values(batch, self.shapes[tag - 2 if tag > 1 else -1]) if tag else batch.bytes())
        batch.end()
        return [text.decode() for text in statements]

    def values(self, batch, shape):
        parts, old = shape
        count = len(parts) // 2
        bits = 2**count - 1 if old is None else int.from_bytes(batch.take((count + 7) // 8), "little")
        need(not bits >> count, "unused bits are set")
        new = [batch.bytes() if bits >> at & 1 else old[at] for at in range(count)]
        if sum(map(len, new)) <= 4096:
            shape[1] = new
        made = list(parts)
        made[1::2] = map(spelled, parts[1::2], new)
        return b"".join(made)

def spelled(marker, value):
    if marker != b"\1":
        return b"'%s'" % value.replace(b"'", b"''") if marker == b"\2" else b"x'%s'" % value.hex().encode()
    cursor = Cursor(value)
    integer = cursor.varint()
    need(integer < 2**63 and not cursor.read(1), "a malformed integer")
    return b"%d" % integer

# ---- §11.5: the database
TOKEN = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|--[^\n]*|/\*.*?(?:\*/|\Z)|[\w$]+|.""", re.S)
CLOCK = {"current_timestamp": "%Y-%m-%d %H:%M:%S", "current_date": "%Y-%m-%d", "current_time": "%H:%M:%S"}
ASKING = "strftime", "datetime", "date", "time", "julianday", "unixepoch"
PRAGMAS = "foreign_keys", "defer_foreign_keys", "legacy_alter_table", "quick_check", "integrity_check"
FORBIDDEN = [getattr(sqlite3, f"SQLITE_{action}") for action in (
    "ATTACH", "DETACH", "TRANSACTION", "SAVEPOINT", "CREATE_VTABLE", "DROP_VTABLE")]

def at_its_time(sql, millis):
    """R27. A definition stays as it is: it asks for no time when it is made."""
    if not re.match(r"\s*(?:insert|replace|update|delete)\b", sql, re.I):
        return sql
    when, made, calls, before = datetime(1970, 1, 1) + timedelta(milliseconds=millis), [], [], ""
    for token in TOKEN.findall(sql):
        word = token.lower()
        if token == "(":
            calls.append(before in ASKING)
        elif token == ")":
            del calls[-1:]
        elif word == "'now'" and any(calls[-1:]):
            token = f"'{when:%Y-%m-%d %H:%M:%S}.{millis % 1000:03}'"
        elif word in CLOCK:
            token = f"'{when:{CLOCK[word]}}'"
        before = word
        made.append(token)
    return "".join(made)

def allowed(action, first, second, *_):
    """R28."""
    denied = (action in FORBIDDEN or action == sqlite3.SQLITE_PRAGMA and first.lower() not in PRAGMAS
              or action == sqlite3.SQLITE_FUNCTION and second.lower() == "load_extension")
    return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK

def decided(records, done, version_then):
    """§7, R14, R15, R23, R33. The batches to execute. What comes up to the seq `done` is in the database already."""
    held, closed = [], False
    for place, first, seq, plain, _ in records:
        kind, body, ready = plain[0], plain[1:], []
        with within(place):
            need(1 <= kind <= 5, f"record kind {kind}; this program knows 1 to 5")
            need((kind == 1) == first and (first or not closed), f"a record of kind {kind} is out of place")
            need(seq != done or kind in (2, 5), "a snapshot of what is no batch")
            closed = kind == 4
            if kind == 1:
                opened = fields(body, time=int, session=str, start=(dict, OPTIONAL))
                need(seq == records[0].seq or not opened["start"], "another beginning of the generation")
                millis, session, decoder = opened["time"], unhex(opened["session"], 16), Decoder()
            elif kind == 3:
                rewind = fields(body, time=int, seq=int, data_version=int)
                if held or seq > done and rewind["seq"] >= done:
                    newest = held and (held[0].seq, held[0].version)
                    need(newest == (rewind["seq"], rewind["data_version"]) and (seq <= done or newest[0] != done),
                         "a rewind of a batch that is not the newest")
                millis, ready, held = max(millis, rewind["time"]), held[1:], []
            elif kind in (2, 5):
                cursor = Cursor(body)
                version = int.from_bytes(cursor.take(4), "little")
                millis += cursor.varint()
                need(seq != done or kind == 5 or version == version_then, "the snapshot has another data_version")
                batch = Batch(place, kind, session, seq, version, millis, decoder.batch(cursor.read()))
                if kind == 2:
                    ready, held = held, [batch]
                else:
                    (held or ready).append(batch)
        yield from (batch for batch in ready if batch.seq > done)
    yield from (batch for batch in held if batch.seq > done)

def execute(path, batches, version):
    """R24 to R29. The data_version then, which is as given before any transaction."""
    db, session = sqlite3.connect(path, isolation_level=None, cached_statements=0), None
    db.executescript("PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY;")
    for batch in batches:
        with within(batch.place):
            if batch.session != session:  # R24
                db.executescript("PRAGMA foreign_keys = ON; PRAGMA legacy_alter_table = OFF;")
                session = batch.session
            if batch.kind == 2:
                db.execute("BEGIN")
                version = batch.version
            db.set_authorizer(allowed)
            for sql in batch.statements:
                db.execute(at_its_time(sql, batch.millis)).fetchall()
            db.set_authorizer(None)
            if batch.kind == 2:
                db.execute("COMMIT")
    with within("the database"):
        found = db.execute("PRAGMA integrity_check").fetchall()
        need(found == [("ok",)], f"integrity_check: {found}")
        rows = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'vars'").fetchall()
        rows = rows and db.execute("SELECT intval FROM vars WHERE name = 'data_version'").fetchall()
        good = [row[0] % 2**32 for row in rows] == ([] if version is None else [version])
        need(good, f"data_version is {rows}, but {version} in the log")
    db.close()
    return version

def restore(path, file, options):
    marker = path / "lockstep.json"
    need(marker.is_file(), f"{path}: no store, for it has no lockstep.json")
    with within(marker):
        store_id = store_id_of(marker.read_bytes(), "lockstep")
    store = Store(path, store_id, key_ring(path, store_id, options), segments_in_parts(path))
    generation, names = newest_generation(store)
    name, meta = newest_snapshot(store, generation, file)
    done, version = name.seq if name else 0, meta and meta["data_version"]
    following = [name.seq for name in names[1:]] + [2**65]  # R31
    sure = [at for at, this in enumerate(names) if this.seq < done and this.seq + 2 <= following[at]]
    root, records = records_of(store, names[max(sure, default=0):])
    need(records, f"log: it ends before seq {done}, the position of a snapshot")
    if name:  # R32
        need(root[0] <= done, f"{name.text}: seq {done + 1} to {root[0]} are missing behind it")
        chains = dict([root] + [(record.seq, record.chain) for record in records])
        need(chains.get(done) == meta["prev"], f"{name.text}: of another log, or of more than is there")
    else:  # R14, R22
        with within(records[0].place):
            start = records[0].plain[0] == 1 and fields(records[0].plain[1:], start=(dict, OPTIONAL))["start"]
            need(start, "the beginning of the generation is missing")
            base, chain = named(fields(start, base=(dict, OPTIONAL))["base"], generation)
            version = base and put_together(store, base, chain, file)["data_version"]
    version = execute(file.name, decided(records, done, version), version)
    print(f"position: generation {generation}, seq {records[-1].seq}, chain {records[-1].chain.hex()}")
    print("snapshot:", name.text if name else "none")
    print("data_version:", "none" if version is None else version)

def main():
    parser = argparse.ArgumentParser(description="Restores the database that a Lockstep store holds.")
    parser.add_argument("store", type=Path, help="the folder of the backup")
    parser.add_argument("dest", type=Path, help="the database to make; must not be there")
    secret = parser.add_mutually_exclusive_group(required=True)
    for kind in ("--hsm-secret", "--key-file"):
        secret.add_argument(kind, metavar="FILE")
    secret.add_argument("--words", action="store_true", help="asks for the words, then for their passphrase")
    options = parser.parse_args()
    need(not options.dest.exists(), f"{options.dest}: it is there already")
    with tempfile.NamedTemporaryFile(dir=options.dest.absolute().parent, prefix=options.dest.name + ".") as file:
        restore(options.store, file, options)
        os.fsync(file.fileno())
        os.link(file.name, options.dest)

if __name__ == "__main__":
    try:
        main()
    except (Refused, OSError, pyrage.DecryptError, pyrage.IdentityError, nacl.exceptions.CryptoError) as error:
        sys.exit(f"lockstep_reader: {error}")
