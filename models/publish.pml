/* publish.pml - one shard: circular log, slot words, moves, eviction, reuse, repair, readers.
 *
 * A writer (the holder of the shard; the lock itself is lock.pml) does OPS operations: set with a
 * value of one or two words, or delete, of one of two keys.  It makes room at the head of a log of
 * UNITS words, where it evicts, moves or skips, chosen freely.  Every store is a step.  A killer
 * may end the writer between any two steps; its successor repairs from the note and goes on with
 * the operations that are left.  A reader looks key 0 up once, at any moment, word by word.
 *
 *   log       word 0 of an entry: header (key, size); then its value, each word the value's id.
 *             Ids and headers share the range 0..15, so that a reader that strays onto reused
 *             memory is given the most plausible nonsense.  >= 16: a pad, its length minus 16.
 *   slot      position + 1 of the entry, times 2, plus a visited bit; 0: empty
 *   ids       2 x operation number + (size - 2): whoever reads a value knows its size
 *   history   observer: ids that key 0 has had since the reader began (bit 0: absent)
 *
 * Switches: READER, CRASHES=n, VISITED (the reader sets the bit of what it found),
 *           WEAK (the writer's stores to log, slots and head reach others in any order between
 *           two fences; the reader copies its words in any order in every configuration)
 * Mutations (each must fail): see models/run.py, which says with what.
 */
#ifndef UNITS
#define UNITS 12
#endif
#ifndef OPS
#define OPS 3
#endif
#ifndef CRASHES
#define CRASHES 0
#endif
#define SLOTS 2
#define LARGEST 3
#ifdef MUT_GAP /* smaller than the largest entry: a move may overwrite its own source */
#define GAP 0
#elif defined(MUT_GAP_NO_PAD)
#define GAP LARGEST
#else
#define GAP (LARGEST + LARGEST - 1) /* the largest entry and the longest pad before it */
#endif
#define MAX_MOVES 3 /* a bound for the model: then it evicts */
#define MAX_RETRIES 3

#define HEADER(key, size) ((key) | (((size) - 2) << 1))
#define H_KEY(header) ((header) & 1)
#define H_SIZE(header) ((((header) >> 1) & 1) + 2)
#define IS_PAD(header) ((header) >= 16)
#ifdef MUT_POSITION_WRAP /* a slot word without the lap: the same word comes back */
#define NAMES(position) ((((position) % UNITS) + 1) << 1)
#else
#define NAMES(position) (((position) + 1) << 1)
#endif
#define POSITION(word) (((word) >> 1) - 1)
#define PLAIN(word) ((word) & 254) /* the visited bit aside */

hidden byte INV_NO_TEAR, INV_LINEAR, INV_NOT_MISSED, INV_COUNTS, INV_WALK, INV_MOVE_ROOM;

/* what readers see */
byte log[UNITS];
byte slot[SLOTS];
byte head;
/* what only holders see */
byte tail;
bool dirty, armed;
byte note_slot, note_word, note_entries, note_units;
byte entries, live_units;
byte done_ops;

/* observers */
bool reading;
short history;
byte truth, next_truth; /* id of key 0 as all see it, and as it will be once the store is seen */
bool killed;

#ifdef WEAK
/* Stores on their way: the value, and a bit that says that it is on its way. */
byte log_buf[UNITS];
byte slot_buf[SLOTS];
byte head_buf;
int pending;
#define P_SLOT(i) (1 << (UNITS + (i)))
#define P_HEAD (1 << (UNITS + SLOTS))
#define FENCE pending == 0
#define LOG(i) ((pending & (1 << (i))) -> log_buf[i] : log[i])
#define SLOT(i) ((pending & P_SLOT(i)) -> slot_buf[i] : slot[i])
#define HEAD ((pending & P_HEAD) -> head_buf : head)
#else
#define FENCE skip
#define LOG(i) log[i]
#define SLOT(i) slot[i]
#define HEAD head
#endif

inline store_log(i, value) {
#ifdef WEAK
    d_step { log_buf[i] = value; pending = pending | (1 << (i)) }
#else
    log[i] = value
#endif
}

inline store_head(value) { /* L-HEAD: store, then a release fence before any byte behind it goes */
#ifdef MUT_HEAD_LATE
    new_head = value /* only its own bookkeeping: stored after the next write */
#else
#ifdef WEAK
    FENCE; /* the slot was cleared or swung first: release store */
    d_step { head_buf = value; pending = pending | P_HEAD };
#ifndef MUT_NO_RELEASE_FENCE
    FENCE
#endif
#else
    head = value
#endif
#endif
}

/* L-PUBLISH: the release store that all hangs on.  id: what key 0 holds then; 255: no change */
inline store_slot(i, value, id) {
#ifdef WEAK
#ifndef MUT_RELAXED_PUBLISH
    FENCE;
#endif
    d_step {
        slot_buf[i] = value;
        pending = pending | P_SLOT(i);
        if
        :: id != 255 -> next_truth = id;
            if
            :: reading -> history = history | (1 << id)
            :: else
            fi
        :: else
        fi
    }
#else
    d_step {
        slot[i] = value;
        if
        :: id != 255 -> truth = id; next_truth = id;
            if
            :: reading -> history = history | (1 << id)
            :: else
            fi
        :: else
        fi
    }
#endif
}

#ifdef WEAK
proctype memory() { /* lets one store after another become visible, in any order */
    byte i;
end:
    do
    :: atomic { pending & 1 -> log[0] = log_buf[0]; log_buf[0] = 0; pending = pending & ~1 }
    :: atomic { pending > 1 ->
        i = 1;
        do
        :: i < UNITS + SLOTS -> i++
        :: pending & (1 << i) -> break
        :: i == UNITS + SLOTS -> break
        od;
        if
        :: !(pending & (1 << i)) -> skip
        :: (pending & (1 << i)) && i < UNITS -> log[i] = log_buf[i]; log_buf[i] = 0
        :: (pending & (1 << i)) && i >= UNITS && i < UNITS + SLOTS ->
            slot[i - UNITS] = slot_buf[i - UNITS];
            slot_buf[i - UNITS] = 0;
            truth = next_truth
        :: (pending & (1 << i)) && i == UNITS + SLOTS -> head = head_buf; head_buf = 0
        fi;
        pending = pending & ~(1 << i);
        i = 0 }
    od
}
#endif

/* ------------------------------------------------------------------ the holder's side */

inline note(s, word, n, units) { /* INV-NOTE: slot, word and counts first, armed last */
#ifdef MUT_ARM_FIRST
    armed = true;
    note_slot = s;
    d_step { note_word = word; note_entries = n; note_units = units }
#else
    d_step { note_slot = s; note_word = word };
    d_step { note_entries = n; note_units = units };
    armed = true
#endif
}

inline settle() { /* after the slot's store */
#ifdef MUT_NOTE_EARLY
    armed = false;
    entries = note_entries;
    live_units = note_units
#else
    entries = note_entries;
    live_units = note_units;
    armed = false
#endif
}

inline verify() { /* no step: what a scan of index and log would find */
    d_step {
        s = 0; n = 0; units = 0; at = HEAD;
        do
        :: at >= tail -> break
        :: else ->
            word = LOG(at % UNITS);
            if
            :: IS_PAD(word) -> at = at + word - 16
            :: else ->
                if
                :: PLAIN(SLOT(0)) == NAMES(at) || PLAIN(SLOT(1)) == NAMES(at) ->
                    n++;
                    units = units + H_SIZE(word);
                :: else
                fi;
                at = at + H_SIZE(word)
            fi
        od;
        assert(INV_WALK || at == tail);
        assert(INV_WALK || n == (SLOT(0) != 0) + (SLOT(1) != 0));
        assert(INV_COUNTS || (n == entries && units == live_units));
        n = 0; units = 0; at = 0; word = 0
    }
}

inline repair() {
    if
    :: dirty ->
        FENCE; /* a death drains the dead process's stores */
        if
        :: armed ->
            if
#ifdef MUT_VISITED_COMPARE
            :: SLOT(note_slot) == note_word ->
#else
            :: PLAIN(SLOT(note_slot)) == note_word ->
#endif
#ifdef MUT_REPAIR_EARLY
                armed = false;
                entries = note_entries;
                live_units = note_units
#else
                entries = note_entries;
                live_units = note_units
#endif
            :: else -> /* never published: nobody can have read there; give the room back */
#ifndef MUT_NO_ROLLBACK
                if
                :: note_word != 0 -> tail = POSITION(note_word)
                :: else
                fi
#else
                skip
#endif
            fi;
            armed = false
        :: else
        fi;
        verify();
        dirty = false
    :: else
    fi
}

/* where the entry of `size` units goes: past a pad if it would cross the end of the log */
#define PAD_BEFORE(size) \
    (((tail % UNITS) + (size) > UNITS) -> (UNITS - (tail % UNITS)) : 0)

inline pad_if_needed(size) {
    if
    :: PAD_BEFORE(size) > 0 ->
        store_log(tail % UNITS, 16 + UNITS - (tail % UNITS));
        tail = tail + UNITS - (tail % UNITS)
    :: else
    fi
}

#ifdef MUT_HEAD_LATE
#define HERE new_head
#else
#define HERE HEAD
#endif

inline make_room() {
    moves = 0;
    do
    :: UNITS - (tail - HERE) >= size + PAD_BEFORE(size) + GAP -> break
    :: else ->
        d_step { at = HERE; word = LOG(at % UNITS) };
        if
        :: IS_PAD(word) -> store_head(at + word - 16)
        :: else ->
            d_step {
                s = 0;
                do
                :: s < SLOTS && PLAIN(SLOT(s)) != NAMES(at) -> s++
                :: else -> break
                od;
                skip
            };
            if
            :: s == SLOTS -> store_head(at + H_SIZE(word)) /* dead: no slot names it */
#ifdef MUT_EVICT_OWN
            :: s < SLOTS ->
#else
            :: s < SLOTS && H_KEY(word) != key ->
#endif
                /* evict: clear the slot, then advance the head */
                note(s, 0, entries - 1, live_units - H_SIZE(word));
                if
                :: H_KEY(word) == 0 && key != 0 -> store_slot(s, 0, 0)
                :: else -> store_slot(s, 0, 255)
                fi;
                settle();
                store_head(at + H_SIZE(word))
            :: s < SLOTS && (moves < MAX_MOVES || H_KEY(word) == key) ->
                /* move: append a copy, swing the slot, advance the head */
                moves++;
                pad_if_needed(H_SIZE(word));
#if !defined(MUT_GAP) && !defined(MUT_GAP_NO_PAD)
                assert(INV_MOVE_ROOM || UNITS - (tail - HERE) >= H_SIZE(word));
#endif
                new_word = NAMES(tail);
                note(s, new_word, entries, live_units);
                store_log(tail % UNITS, word);
                id = LOG((at + 1) % UNITS);
                store_log((tail + 1) % UNITS, id);
                if
                :: H_SIZE(word) == 3 ->
                    id = LOG((at + 2) % UNITS);
                    store_log((tail + 2) % UNITS, id)
                :: else
                fi;
                id = 0;
                tail = tail + H_SIZE(word);
                store_slot(s, new_word, 255);
                settle();
                store_head(at + H_SIZE(word))
            fi
        fi
    od;
    moves = 0; /* a step of its own: `break` may not lead into a d_step */
    d_step { at = 0; word = 0; s = 0; new_word = 0 }
}

/* the slot of `key`; SLOTS if it has none (s), and a free one (vacant) */
inline look_up() {
    d_step {
        s = 0;
        vacant = SLOTS;
        do
        :: s < SLOTS && SLOT(s) == 0 -> vacant = s; s++
        :: s < SLOTS && SLOT(s) != 0 && H_KEY(LOG(POSITION(SLOT(s)) % UNITS)) != key -> s++
        :: else -> break
        od;
        skip
    }
}

proctype writer() {
    byte key, size, s, vacant, at, word, new_word, n, units, moves, id, shown;
#ifdef MUT_HEAD_LATE
    byte new_head;
#endif
begin:
    {
        repair();
        do
        :: done_ops == OPS -> break
        :: done_ops < OPS ->
            d_step { done_ops++; dirty = true };
            if
            :: atomic { key = 0; size = 2 }
            :: atomic { key = 0; size = 3 }
            :: atomic { key = 1; size = 2 }
            :: atomic { key = 1; size = 3 }
            :: atomic { key = 0; size = 0 } /* delete */
            fi;
            if
            :: size > 0 ->
#ifdef MUT_HEAD_LATE
                new_head = HEAD;
#endif
                make_room();
                look_up();
                pad_if_needed(size);
                /* L-WRITE: header and value past the tail, then the tail */
                d_step { id = 2 * done_ops + size - 2; shown = (key == 0 -> id : 255); at = tail };
                d_step {
                    if
                    :: s < SLOTS ->
                        n = entries;
                        units = live_units + size - H_SIZE(LOG(POSITION(SLOT(s)) % UNITS))
                    :: else -> s = vacant; n = entries + 1; units = live_units + size
                    fi
                };
#ifndef MUT_NOTE_LATE
                note(s, NAMES(at), n, units);
#endif
                store_log(at % UNITS, HEADER(key, size));
#ifdef MUT_TAIL_EARLY
                tail = tail + size;
#endif
                store_log((at + 1) % UNITS, id);
                if
                :: size == 3 -> store_log((at + 2) % UNITS, id)
                :: else
                fi;
#ifndef MUT_TAIL_EARLY
                tail = tail + size;
#endif
                store_slot(s, NAMES(at), shown);
#ifdef MUT_NOTE_LATE
                note(s, NAMES(at), n, units);
#endif
                settle();
#ifdef MUT_HEAD_LATE
                head = new_head;
#endif
            :: else ->
                look_up();
                if
                :: s < SLOTS ->
                    d_step {
                        n = entries - 1;
                        units = live_units - H_SIZE(LOG(POSITION(SLOT(s)) % UNITS))
                    };
                    note(s, 0, n, units);
                    store_slot(s, 0, 0);
                    settle()
                :: else
                fi
            fi;
            d_step { n = 0; units = 0; at = 0; id = 0; shown = 0; s = 0; vacant = 0; size = 0; key = 0 };
            FENCE; /* the release of the lock */
            verify();
            atomic { dirty = false }
        od
    } unless { killed };
    if
    :: killed ->
        atomic {
            killed = false;
            key = 0; size = 0; s = 0; vacant = 0; at = 0; word = 0; new_word = 0; n = 0; units = 0;
            moves = 0; id = 0; shown = 0;
            goto begin
        }
    :: else
    fi
}

#if CRASHES > 0
proctype killer() {
    byte kills;
end:
    do
    :: atomic { kills < CRASHES && dirty && !killed -> kills++; killed = true }
    od
}
#endif

/* ------------------------------------------------------------------ the reader's side */

proctype reader() {
    byte s, word, again, header, first, second, tries;
    atomic { reading = true; history = (1 << truth) | (1 << next_truth) };
look:
    atomic {
        if
        :: s == SLOTS -> goto missed
        :: s < SLOTS && tries > MAX_RETRIES -> goto over /* CorruptSegment */
        :: else
        fi;
        word = PLAIN(slot[s]); /* R-LOAD: acquire */
        if
        :: word == 0 -> s++; goto look
        :: else
        fi
    };
    atomic { /* R-KEY: header and key, bounds checked */
        header = log[POSITION(word) % UNITS];
        if
        :: IS_PAD(header) || H_KEY(header) != 0 || (POSITION(word) % UNITS) + H_SIZE(header) > UNITS ->
#ifdef MUT_MISMATCH_NO_RECHECK
            s++; word = 0; header = 0;
            goto look
#else
            goto recheck_mismatch
#endif
        :: else
        fi
    };
#ifdef MUT_NO_ACQUIRE /* the recheck's load passes the loads of the copy */
    again = PLAIN(slot[s]);
#endif
    /* R-COPY: the words of the value, in any order */
    if
    :: H_SIZE(header) == 2 -> first = log[(POSITION(word) + 1) % UNITS]
    :: H_SIZE(header) == 3 ->
        first = log[(POSITION(word) + 1) % UNITS];
        second = log[(POSITION(word) + 2) % UNITS]
    :: H_SIZE(header) == 3 ->
        second = log[(POSITION(word) + 2) % UNITS];
        first = log[(POSITION(word) + 1) % UNITS]
    fi;
#ifdef MUT_NO_RECHECK
    goto found;
#endif
    /* R-RECHECK: acquire fence, slot, then head */
    atomic {
#ifndef MUT_NO_ACQUIRE
        again = PLAIN(slot[s]);
#endif
        if
        :: again == word -> goto found
        :: else -> again = 0
        fi
    };
    atomic {
        if
        :: head <= POSITION(word) -> goto found
        :: else
        fi
    };
    atomic { tries++; word = 0; header = 0; first = 0; second = 0; goto look };
recheck_mismatch:
    atomic {
        again = PLAIN(slot[s]);
        if
        :: again == word -> s++ /* another key's slot, truly */
        :: else -> tries++
        fi;
        again = 0; word = 0; header = 0;
        goto look
    };
found:
    atomic {
        assert(INV_NO_TEAR || H_SIZE(header) == 2 || first == second);
        assert(INV_NO_TEAR || H_SIZE(header) == 2 + (first & 1));
        assert(INV_LINEAR || (history & (1 << first)))
#ifdef VISITED
        ;
        goto visit
#else
        ;
        goto over
#endif
    };
missed:
    atomic {
        assert(INV_NOT_MISSED || (history & 1));
        goto over
    };
#ifdef VISITED
visit:
#ifdef MUT_VISITED_STORE /* a plain store instead of a compare-and-swap */
    slot[s] = word | 1;
#else
    atomic {
        if
        :: slot[s] == word -> slot[s] = word | 1
        :: else
        fi
    };
#endif
#endif
over:
    atomic {
        reading = false; history = 0;
        s = 0; word = 0; again = 0; header = 0; first = 0; second = 0; tries = 0
    }
}

init {
    atomic {
        /* key 0 (value 1: two words) and key 1 (value 0: one word) are there; ids 0 and 1 are
         * theirs and no operation's, so bit 0 of history is free to mean absent */
        if
        :: log[0] = HEADER(0, 3); log[1] = 1; log[2] = 1;
            log[3] = HEADER(1, 2); log[4] = 0;
            slot[0] = NAMES(0); slot[1] = NAMES(3)
        :: log[0] = HEADER(1, 2); log[1] = 0;
            log[2] = HEADER(0, 3); log[3] = 1; log[4] = 1;
            slot[0] = NAMES(0); slot[1] = NAMES(2)
        fi;
        tail = 5; entries = 2; live_units = 5;
        truth = 1; next_truth = 1;
        run writer();
#ifdef READER
        run reader();
#endif
#if CRASHES > 0
        run killer();
#endif
#ifdef WEAK
        run memory();
#endif
    }
}
