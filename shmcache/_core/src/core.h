/* core.h - the whole core, in the order of its levels: one translation unit includes it. */
#ifndef SHMCACHE_CORE_H
#define SHMCACHE_CORE_H

#include "layout.h"
#include "atomics.h"
#include "hash.h"
#include "view.h"
#include "ring.h"
#include "superblock.h"
#include "lock.h"
#include "log.h"
#include "read.h"
#include "room.h"
#include "write.h"
#include "lease.h"
#include "verify.h"
#include "directory.h"
#include "swap.h"
#include "token.h"

#endif
