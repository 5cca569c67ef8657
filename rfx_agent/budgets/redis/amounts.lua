-- Amounts, exact up to 10**24: a Lua number as long as that is exact, else billions and the rest: {hi, lo}.

local LAST = 9007199254740991 -- the last whole number that a Lua number holds exactly
local BASE = 1000000000

local function halves(a)
  if type(a) == 'table' then return a[1], a[2] end
  local hi = math.floor(a / BASE)
  return hi, a - hi * BASE
end

local function joined(hi, lo)
  if lo >= BASE then hi, lo = hi + 1, lo - BASE end
  if lo < 0 then hi, lo = hi - 1, lo + BASE end
  if hi < 9007199 and hi >= -9007199 then return hi * BASE + lo end
  return {hi, lo}
end

local function plus(a, b)
  if type(a) == 'number' and type(b) == 'number' then
    local sum = a + b
    if sum <= LAST and sum >= -LAST then return sum end
  end
  local hi, lo = halves(a)
  local more_hi, more_lo = halves(b)
  return joined(hi + more_hi, lo + more_lo)
end

local function negative(a)
  if type(a) == 'number' then return -a end
  return joined(-a[1], -a[2])
end

local function minus(a, b) return plus(a, negative(b)) end

local function less(a, b)
  if type(a) == 'number' and type(b) == 'number' then return a < b end
  local hi, lo = halves(a)
  local other_hi, other_lo = halves(b)
  return hi < other_hi or (hi == other_hi and lo < other_lo)
end

local texts = {} -- of the numbers that were read: most are written as they were

local function amount(text)
  local n = #text
  if n <= 15 then
    local number = tonumber(text)
    if number then texts[number] = text end
    return number
  end
  if string.sub(text, 1, 1) == '-' then return negative(amount(string.sub(text, 2))) end
  return joined(tonumber(string.sub(text, 1, n - 9)), tonumber(string.sub(text, n - 8)))
end

local function whole(n) return string.format('%.0f', n) end

local function shown(a)
  if type(a) == 'number' then return texts[a] or whole(a) end
  if a[1] < 0 then return '-' .. shown(negative(a)) end
  return string.format('%.0f%09.0f', a[1], a[2])
end

-- The whole units of share * a, as Python reckons a float times an integer.
local function part(share, a)
  local x = math.floor(share * tonumber(shown(a)))
  if x >= 1e24 then return {1e15, 0} end
  if x <= LAST then return x end
  local lo = math.fmod(x, BASE)
  return joined(math.floor((x - lo) / BASE + 0.5), lo)
end
