-- wrk: post the lines of the file BODIES in turn.
local bodies = {}
for line in io.lines(os.getenv("BODIES")) do
  bodies[#bodies + 1] = wrk.format("POST", "/v1/classify", {["content-type"] = "application/json"}, line)
end
local turn = 0
request = function()
  turn = turn % #bodies + 1
  return bodies[turn]
end
