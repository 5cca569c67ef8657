-- The accounting of shared budgets on the server: accounting.py to the digit, one request a call. Change both together.
--
-- KEYS: 1 the mark of these budgets and how many of the others there are; 2 accounts, 3 reservations and 4 records,
--   each a hash by name; 5 open reservations by the time that they expire, 6 ended ones by the time that they are
--   forgotten.
-- ARGV: 1 the mark as the caller knows it; 2 now, empty for the server's clock; 3 how long ended ones are kept;
--   4 whether refusals are counted; 5 the request; 6... what it is about. Times in microseconds.
--
-- amounts.lua comes before it. Everything is read and reckoned first and written last: a script that fails has written
-- nothing.

local MARK, ACCOUNTS, HOLDS, RECORDS, OPEN_SET, ENDED_SET = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]

-- Behind the mark stands how many of the keys there are, without that of open reservations, which comes and goes.
-- Only this script makes and deletes them: fewer are a loss, and then the mark is another, so that everybody who has
-- these budgets in use notices once.
local standing = redis.call('GET', MARK)
local base, count = string.match(standing or '', '^(%S+ %S+) ?(%d*)$')
if (base or standing) ~= ARGV[1] then return {'mark'} end
local function there() return redis.call('EXISTS', ACCOUNTS, HOLDS, RECORDS, ENDED_SET) end
local before = tonumber(count) or 0
if there() < before then
  redis.call('SET', MARK, base .. "'")
  return {'mark'}
end

local BUCKETS, OPEN, SETTLED, RELEASED, EXPIRED = 60, '0', '1', '2', '3'
local SWEPT, FORGOTTEN = 500, 50 -- reservations that one call ends or forgets at most

-- Time.

local now = tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local kept = math.min(now + tonumber(ARGV[3]), LAST) -- when what ends now is forgotten

-- What was spent or deposited, by bucket. The last bucket stands by itself and the others in a text, so that most
-- requests read and write none of them; the sum is of those that count since the account's oldest.

local function add(series, bucket, n)
  if series.last == bucket then
    series.n = plus(series.n, n)
  elseif series.last and bucket < series.last then
    series.text = series.text .. whole(bucket) .. ':' .. shown(n) .. ' '
  else
    if series.last then series.text = series.text .. whole(series.last) .. ':' .. shown(series.n) .. ' ' end
    series.last, series.n = bucket, n
  end
  series.sum = plus(series.sum, n)
end

-- By bucket, those from the bucket oldest on, and their names in order.
local function counting(series, oldest)
  local amounts, buckets = {}, {}
  local function put(bucket, n)
    if bucket < oldest then return end
    if not amounts[bucket] then buckets[#buckets + 1] = bucket end
    amounts[bucket] = plus(amounts[bucket] or 0, n)
  end
  for bucket, n in string.gmatch(series.text, '(%-?%d+):(%-?%d+)') do put(tonumber(bucket), amount(n)) end
  if series.last then put(series.last, series.n) end
  table.sort(buckets)
  return amounts, buckets
end

local function since(series, oldest)
  local amounts, buckets = counting(series, oldest)
  local fresh = {sum = 0, text = ''}
  for _, bucket in ipairs(buckets) do add(fresh, bucket, amounts[bucket]) end
  return fresh
end

-- Accounts, as far as they are needed. In the hash: kind, unit, most, span and the totals; where there is a window, the
-- oldest bucket as of the last look, and of what was spent and what was deposited: sum, last bucket, its amount, others.

local accounts, touched = {}, {}
local TOTALS = {'granted', 'spent', 'reserved', 'lost', 'refused', 'peak'}
local LONG = 6000 -- characters of buckets that are put together at the next look

local function account_of(name, kind, unit, most, span)
  return {
    name = name, kind = kind, unit = unit, most = most, span = span, width = math.max(1, math.ceil(span / BUCKETS)),
    granted = 0, spent = 0, reserved = 0, lost = 0, refused = 0, peak = 0,
    buckets = {sum = 0, text = ''}, credits = {sum = 0, text = ''},
  }
end

local function series_of(row, i)
  return {sum = amount(row[i]), last = amount(row[i + 1]), n = amount(row[i + 2]), text = row[i + 3]}
end

local function load(names)
  local missing = {}
  for _, name in ipairs(names) do
    if accounts[name] == nil then missing[#missing + 1], accounts[name] = name, false end
  end
  local rows = #missing > 0 and redis.call('HMGET', ACCOUNTS, unpack(missing))
  for i, name in ipairs(missing) do
    if rows[i] then
      local row = cjson.decode(rows[i])
      local a = account_of(name, row[1], row[2], amount(row[3]), amount(row[4]))
      for j, total in ipairs(TOTALS) do a[total] = amount(row[4 + j]) end
      if a.span > 0 then
        a.oldest, a.buckets, a.credits = amount(row[11]), series_of(row, 12), series_of(row, 16)
      end
      accounts[name] = a
    end
  end
end

local function begin(a) return math.floor((now - a.span) / a.width) end

-- Credit in the bucket that the window begins in does not count.
local function slide(a)
  local oldest = begin(a)
  if a.oldest ~= oldest then
    a.oldest, a.buckets, a.credits = oldest, since(a.buckets, oldest), since(a.credits, oldest + 1)
  end
end

local function in_window(a)
  if a.span > 0 then slide(a) end
  return a.buckets.sum
end

-- What is older than the window goes at the next look; till then it is in no sum.
local function put(a, series, at, n)
  slide(a)
  local bucket = math.floor(at / a.width)
  if bucket >= a.oldest + (series == 'credits' and 1 or 0) then add(a[series], bucket, n) end
end

local function charge(a, n, at)
  a.spent = plus(a.spent, n)
  if a.span > 0 and less(0, n) then put(a, 'buckets', at, n) end
end

local function correct(a, reserved, cost, at)
  a.lost = minus(a.lost, reserved)
  if not less(cost, reserved) then return charge(a, minus(cost, reserved), now) end
  local back = minus(cost, reserved)
  a.spent = plus(a.spent, back)
  if a.span > 0 then put(a, 'buckets', at, back) end -- unless it has slid out
end

local function mark(a)
  local height = plus(a.reserved, in_window(a))
  if less(a.peak, height) then a.peak = height end
end

-- What the limit and the credit after the bucket oldest come to; credit from beyond now does not count.
local function limit(claim, a, oldest)
  if claim.kind ~= 'ratio' then return claim.most end
  slide(a)
  local sum, newest = a.credits.sum, math.floor(now / a.width)
  if oldest ~= a.oldest or (a.credits.last and a.credits.last > newest) then
    local amounts, buckets = counting(a.credits, oldest + 1)
    sum = 0
    for _, bucket in ipairs(buckets) do
      if bucket <= newest then sum = plus(sum, amounts[bucket]) end
    end
  end
  return plus(claim.most, part(claim.share, sum))
end

local function after(a, claim)
  local used = in_window(a)
  if a.span == 0 then return end
  local amounts, buckets = counting(a.buckets, a.oldest)
  for _, bucket in ipairs(buckets) do
    used = minus(used, amounts[bucket])
    if not less(limit(claim, a, bucket + 1), plus(plus(a.reserved, used), claim.amount)) then
      return math.max(0, (bucket + 1) * a.width + a.span - now)
    end
  end
end

local function opened(claim)
  local a = accounts[claim.account]
  if not a then
    a = account_of(claim.account, claim.kind, claim.unit, claim.most, claim.span)
    accounts[claim.account], touched[claim.account] = a, true
  end
  return a
end

local function claims_from(first)
  local claims, names = {}, {}
  for i = first, #ARGV, 7 do
    claims[#claims + 1] = {
      account = ARGV[i], kind = ARGV[i + 1], unit = ARGV[i + 2], amount = amount(ARGV[i + 3]),
      most = amount(ARGV[i + 4]), span = amount(ARGV[i + 5]), share = tonumber(ARGV[i + 6]),
    }
    names[#names + 1] = ARGV[i]
  end
  load(names)
  return claims
end

-- Reservations. In the hash: token, state, due, ended, and of each claim the account, the unit and the amount.

local holds, written, records, forgotten, gone = {}, {}, {}, {}, {}

local function hold(id)
  if holds[id] == nil then
    local text = redis.call('HGET', HOLDS, id)
    local found = false
    if text then
      local row = cjson.decode(text)
      found = {token = row[1], state = row[2], due = tonumber(row[3]), ended = tonumber(row[4]), claims = {}}
      for i = 5, #row, 3 do found.claims[#found.claims + 1] = {row[i], row[i + 1], row[i + 2]} end
      if found.state ~= OPEN and found.due <= now then
        forgotten[#forgotten + 1] = id
        gone[id], found = true, false
      end
    end
    holds[id] = found
  end
  return holds[id]
end

local function finish(id, row, state) row.state, row.due, written[id] = state, kept, true end

local function each_account(row)
  local found, names = {}, {}
  for i, claim in ipairs(row.claims) do names[i] = claim[1] end
  load(names)
  for _, claim in ipairs(row.claims) do
    local a = accounts[claim[1]]
    if a then
      touched[a.name] = true
      found[#found + 1] = {a, claim[2], amount(claim[3])}
    end
  end
  return found
end

-- As of the end of its time, whenever that is noticed.
local function lose(id, row)
  local at = math.min(row.due, now)
  for _, x in ipairs(each_account(row)) do
    x[1].reserved = minus(x[1].reserved, x[3])
    x[1].lost = plus(x[1].lost, x[3])
    charge(x[1], x[3], at)
  end
  finish(id, row, EXPIRED)
  row.ended = at
end

local function record_of(id) return not gone[id] and hold(id) and redis.call('HGET', RECORDS, id) end

-- Requests.

local requests = {}

function requests.reserve()
  local id, token = ARGV[6], ARGV[7]
  local row = hold(id)
  local record = record_of(id)
  if record then return {'replayed', record} end
  local asked = claims_from(9)
  for _, claim in ipairs(asked) do claim.on = opened(claim) end
  if row and row.state == OPEN then
    if row.token == token then return {'granted'} end
    lose(id, row) -- whether or not there is room: its owner is dead
  end
  local short, known, longest = {}, true, 0
  for _, claim in ipairs(asked) do
    local a = claim.on
    if less(a.most, claim.most) or less(claim.most, a.most) then
      a.most, touched[a.name] = claim.most, true
    end
    if less(limit(claim, a, begin(a)), plus(plus(a.reserved, in_window(a)), claim.amount)) then
      short[#short + 1] = a.name
      if ARGV[4] == '1' then a.refused = plus(a.refused, 1) end
      touched[a.name] = true
      local wait = after(a, claim)
      if wait then longest = math.max(longest, wait) else known = false end
    end
  end
  if #short > 0 then return {'refused', known and whole(longest) or '', unpack(short)} end
  local due = math.min(now + tonumber(ARGV[8]), LAST)
  row = {fresh = not row, token = token, state = OPEN, due = due, ended = 0, claims = {}}
  for i, claim in ipairs(asked) do
    local a = claim.on
    a.granted, a.reserved = plus(a.granted, claim.amount), plus(a.reserved, claim.amount)
    mark(a)
    touched[a.name] = true
    row.claims[i] = {a.name, claim.unit, shown(claim.amount)}
  end
  holds[id], written[id] = row, true
  return {'granted'}
end

function requests.settle()
  local id, row = ARGV[6], hold(ARGV[6])
  if not row or row.token ~= ARGV[7] or row.state == SETTLED then return {'done'} end
  local actual = {}
  for i = 10, #ARGV, 2 do actual[ARGV[i]] = amount(ARGV[i + 1]) end
  for _, x in ipairs(each_account(row)) do
    local a, cost, reserved = x[1], actual[x[2]] or 0, x[3]
    if row.state == EXPIRED then
      correct(a, reserved, cost, row.ended)
    else
      if row.state == OPEN then a.reserved = minus(a.reserved, reserved) end
      charge(a, cost, now)
    end
    mark(a)
  end
  if ARGV[8] == '1' and not record_of(id) then records[id] = ARGV[9] end
  row.claims = {} -- nothing can happen to them any more
  finish(id, row, SETTLED)
  return {'done'}
end

function requests.release()
  local row = hold(ARGV[6])
  if not row or row.token ~= ARGV[7] or row.state ~= OPEN then return {'done'} end
  for _, x in ipairs(each_account(row)) do x[1].reserved = minus(x[1].reserved, x[3]) end
  finish(ARGV[6], row, RELEASED)
  return {'done'}
end

function requests.keep()
  local id, record = ARGV[6], ARGV[7]
  if not hold(id) then
    holds[id] = {fresh = true, token = '', state = SETTLED, due = kept, ended = 0, claims = {}}
    written[id] = true
  end
  local stands = record_of(id)
  if not stands then records[id] = record end
  return {'kept', stands or record}
end

function requests.deposit()
  local at = now - tonumber(ARGV[6])
  for _, claim in ipairs(claims_from(7)) do
    local a = opened(claim)
    if a.span > 0 then put(a, 'credits', at, claim.amount) end
    touched[a.name] = true
  end
  return {'done'}
end

-- What ended that long ago.
function requests.prune()
  local old = redis.call('ZRANGEBYSCORE', ENDED_SET, '-inf', ARGV[6], 'LIMIT', 0, ARGV[7])
  for _, id in ipairs(old) do forgotten[#forgotten + 1] = id end
  return {'pruned', #old}
end

-- Accounts that are still as they were seen.
function requests.drop()
  local dropped = 0
  for i = 6, #ARGV, 2 do
    if redis.call('HGET', ACCOUNTS, ARGV[i]) == ARGV[i + 1] then
      dropped = dropped + redis.call('HDEL', ACCOUNTS, ARGV[i])
    end
  end
  return {'pruned', dropped}
end

-- First what is due, then the request.

local late = redis.call('ZRANGEBYSCORE', OPEN_SET, '-inf', whole(now), 'LIMIT', 0, SWEPT)
for _, id in ipairs(late) do
  local row = hold(id)
  if row and row.state == OPEN then lose(id, row) end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', ENDED_SET, '-inf', whole(now), 'LIMIT', 0, FORGOTTEN)) do
  forgotten[#forgotten + 1] = id
end
local answer = #late == SWEPT and {'again'} or requests[ARGV[5]]()

for i = 1, #forgotten, 1000 do
  local some = {unpack(forgotten, i, math.min(i + 999, #forgotten))}
  redis.call('HDEL', HOLDS, unpack(some))
  redis.call('HDEL', RECORDS, unpack(some))
  redis.call('ZREM', ENDED_SET, unpack(some))
end
local shrunk = #forgotten > 0 or ARGV[5] == 'drop'
local rows = {}
for name in pairs(touched) do
  local a = accounts[name]
  local row = {a.kind, a.unit, shown(a.most), shown(a.span)}
  for i, total in ipairs(TOTALS) do row[4 + i] = shown(a[total]) end
  if a.span > 0 then
    slide(a)
    row[11] = #a.buckets.text + #a.credits.text < LONG and shown(a.oldest) or ''
    for i, series in ipairs({a.buckets, a.credits}) do
      local at = 8 + 4 * i
      row[at], row[at + 1] = shown(series.sum), series.last and shown(series.last) or ''
      row[at + 2], row[at + 3] = shown(series.n or 0), series.text
    end
  end
  rows[#rows + 1] = name
  rows[#rows + 1] = cjson.encode(row)
end
for i = 1, #rows, 1000 do redis.call('HSET', ACCOUNTS, unpack(rows, i, math.min(i + 999, #rows))) end
for id in pairs(written) do
  local row = holds[id]
  local columns = {row.token, row.state, whole(row.due), whole(row.ended)}
  for _, claim in ipairs(row.claims) do
    for _, column in ipairs(claim) do columns[#columns + 1] = column end
  end
  redis.call('HSET', HOLDS, id, cjson.encode(columns))
  shrunk = shrunk or (row.state == OPEN and not row.fresh)
  if not row.fresh then redis.call('ZREM', row.state == OPEN and ENDED_SET or OPEN_SET, id) end
  redis.call('ZADD', row.state == OPEN and OPEN_SET or ENDED_SET, whole(row.due), id)
end
for id, record in pairs(records) do redis.call('HSET', RECORDS, id, record) end
if before < 4 or shrunk then
  local left = there()
  if left ~= before then redis.call('SET', MARK, base .. ' ' .. left) end
end
return answer
