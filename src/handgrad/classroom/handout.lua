-- From a notebook's Markdown to paper (typst) and page (HTML). What is unknown here is an error.

local paper = FORMAT:match("^typst") ~= nil

local function refuse(what)
  error("handout: " .. what, 0)
end

local function write(inlines)
  local document = pandoc.Pandoc({ pandoc.Plain(inlines) })
  return (pandoc.write(document, "typst"):gsub("%s+$", ""))
end

local function quoted(text)
  return '"' .. text:gsub('[\\"]', "\\%0"):gsub("\n", "\\n") .. '"'
end

-- Mathematics ------------------------------------------------------------------------------------

-- TeX that pandoc would lose without a word, or mangle within a formula
local LOST = { "color", "textcolor", "substack", "label", "ref", "eqref", "tag", "hphantom", "vphantom" }
local WITHIN = { "aligned", "align", "split", "gathered", "array" }

-- What pandoc writes amiss is wrapped in two operators of these names, found again in its typst.
local function wrapped(name, tex)
  return "\\operatorname{open" .. name .. "} " .. tex .. " \\operatorname{shut" .. name .. "} "
end

local function argument(tex, position)
  local group = tex:match("^%s*(%b{})", position)
  local found = group or tex:match("^%s*(\\%a+)", position) or tex:match("^%s*(\\?.)", position)
  local _, last = tex:find(found, position, true)
  return found, last + 1
end

-- \left. ... \right|  and  \left\{ ... \right.  stretch their one delimiter
local function one_sided(tex)
  local opened, here = {}, 1
  while true do
    local first, last, side = tex:find("\\(%a+)", here)
    if not first then
      break
    end
    here = last + 1
    if side == "left" or side == "right" then
      local mark, after = argument(tex, here)
      here = after
      if side == "left" then
        opened[#opened + 1] = { first = first, after = after, mark = mark }
      else
        local left = table.remove(opened) or refuse("\\right without \\left in " .. tex)
        if left.mark == "." or mark == "." then
          local inner = (left.mark .. " " .. tex:sub(left.after, first - 1) .. " " .. mark)
          local whole = wrapped("lr", (inner:gsub("^%.", ""):gsub("%.$", "")))
          tex = tex:sub(1, left.first - 1) .. whole .. tex:sub(after)
          here = left.first + #whole
        end
      end
    end
  end
  return tex
end

local function styled(tex, macro, name)
  local from = 1
  while true do
    local first, last = tex:find("\\" .. macro .. "%f[%A]", from)
    if not first then
      return tex
    end
    local above, middle = argument(tex, last + 1)
    local below, rest = argument(tex, middle)
    local fraction = "\\frac{" .. above .. "}{" .. below .. "}"
    tex = tex:sub(1, first - 1) .. wrapped(name, fraction) .. tex:sub(rest)
    from = first + 1
  end
end

-- A formula in typst, between dollars, that carries its words.
local function spoken(set)
  return "spoken($" .. set .. "$)"
end

-- One formula in typst, without the dollars.
local function formula(tex)
  for _, macro in ipairs(LOST) do
    if tex:find("\\" .. macro .. "%f[%A]") then
      refuse("\\" .. macro .. " has no place in " .. tex)
    end
  end
  for _, name in ipairs({ "array", "matrix", "smallmatrix", "cases" }) do
    local columns = name == "array" and "{[lcr]*}" or ""
    local pattern = "\\begin{" .. name .. "}" .. columns .. "(.-)\\end{" .. name .. "}"
    tex = tex:gsub(pattern, function(rows)
      local left = name == "cases" and "left" or "bare"
      return wrapped(left, "\\begin{pmatrix}" .. rows .. "\\end{pmatrix}")
    end)
  end
  for _, name in ipairs(WITHIN) do
    if tex:find("\\begin{" .. name, 1, true) then
      refuse(name .. " within a formula: " .. tex)
    end
  end
  tex = tex:gsub("\\lvert%f[%A]", "\\left|"):gsub("\\rvert%f[%A]", "\\right|")
  tex = tex:gsub("\\|", "\\Vert "):gsub("\\operatorname%*{", "\\operatorname{limits")
  tex = styled(styled(one_sided(tex), "tfrac", "inline"), "dfrac", "display")
  local out = write({ pandoc.Math("InlineMath", tex) }):match("^%$(.*)%$$")
  if not out then
    refuse("no formula: " .. tex)
  end
  -- a matrix without parentheses, or with one brace
  for _, name in ipairs({ "bare", "left" }) do
    local prefix = name == "left" and "align: #left, column-gap: #1.2em, " or ""
    local opened = '"open' .. name .. '" '
    out = out:gsub(opened .. 'mat%(delim: "%(", ', opened .. "mat(delim: #none, " .. prefix)
    out = out:gsub(opened .. "vec%(", opened .. "vec(delim: #none, ")
  end
  out = out:gsub('"openleft"', "lr(\\{ "):gsub('"%a+bare"', "")
  out = out:gsub('"openlr" ([%[({])', '"openlr" \\%1'):gsub('([%])}]) "shutlr"', '\\%1 "shutlr"')
  out = out:gsub('"open(%a+)"', "%1("):gsub('"shut%a+"', ")")
  out = out:gsub('"limits([^"]*)"', 'op("%1", limits: #true)')
  out = out:gsub('(.?)"([%w%- ]+)"', function(before, name)
    if before == "(" then -- upright("a text"), op("already")
      return nil
    end
    return before .. 'op("' .. name .. '")'
  end)
  -- beside words the spaces that stand in \text, and beside bars none
  out = out:gsub('upright%("(%s*)(.-)(%s*)"%)%s*', function(before, words, after)
    return (before == "" and "\1" or "") .. 'upright("' .. words .. '")' .. (after ~= "" and " " or "")
  end)
  out = out:gsub("(%f[%w]%w%s+)\1", "%1#h(0pt) "):gsub("(%)%s+)\1", "%1#h(0pt) "):gsub("\1", "")
  out = out:gsub("%s*bar%.v%.double%s*", "‖"):gsub("%s*\\|%s*", "\\|")
  out = out:gsub("#h%(0em%)", "thick"):gsub("#h%(%-1em%)", "#h(-0.1667em)")
  -- names that typst has given up
  out = out:gsub("(%l)%.circle%f[%A]", "%1.o"):gsub("%f[%a]sect%f[%A]", "inter")
  out = out:gsub("bracket%.([lr])%.double", "bracket.%1.stroked")
  out = out:gsub("#scale%(x: (%d+)%%, y: %d+%%%)%[(\\?.[^%]]*)%]", "stretch(%2, size: #%1%%)")
  return out
end

-- Rows and cells of an aligned body; what stands in braces or in an inner environment stays whole.
local function table_of(tex)
  local rows, cells, piece, depth, here = {}, {}, "", 0, 1
  local function close()
    cells[#cells + 1] = piece:match("^%s*(.-)%s*$")
    piece = ""
  end
  while here <= #tex do
    local token = tex:match("^\\%a+", here) or tex:match("^\\.", here) or tex:sub(here, here)
    here = here + #token
    if token == "\\begin" or token == "{" then
      depth = depth + 1
    elseif token == "\\end" or token == "}" then
      depth = depth - 1
    end
    if depth < 0 then
      return nil
    elseif depth == 0 and token == "&" then
      close()
    elseif depth == 0 and token == "\\\\" then
      here = here + #(tex:match("^%s*%[[^%]]*%]", here) or "")
      close()
      rows[#rows + 1], cells = cells, {}
    else
      piece = piece .. token
    end
  end
  close()
  if #cells > 1 or cells[1] ~= "" then
    rows[#rows + 1] = cells
  end
  return rows
end

-- A reason, \text{...} with formulas in between, as words that can be broken into lines.
local function reason(tex)
  local inlines, here = pandoc.Inlines({}), 1
  local function add_formula(piece)
    if piece:match("%S") then
      inlines:insert(pandoc.RawInline("typst", "#" .. spoken(formula(piece)) .. ";"))
    end
  end
  while true do
    local first, last, words = tex:find("\\text(%b{})", here)
    if not first then
      break
    end
    local before = tex:sub(here, first - 1)
    if select(2, before:gsub("{", "")) ~= select(2, before:gsub("}", "")) then
      return "#" .. spoken(formula(tex))
    end
    add_formula(before)
    words = words:sub(2, -2):gsub("\\([%%#&_$ ])", "%1"):gsub("~", " "):gsub("'", "’")
    if words:find("[\\$]") then
      refuse("TeX within \\text" .. words)
    end
    if words:match("^%s") then
      inlines:insert(pandoc.Space())
    end
    inlines:extend(pandoc.Inlines(words:match("^%s*(.-)%s*$")))
    if words:match("%S%s+$") then
      inlines:insert(pandoc.Space())
    end
    here = last + 1
  end
  add_formula(tex:sub(here))
  return write(inlines)
end

-- The rows of an aligned body, and whether they are: left side, right side, nothing, reason.
local function aligned(tex)
  local body = tex:match("^%s*\\begin{aligned}(.*)\\end{aligned}%s*$")
    or tex:match("^%s*\\begin{align%*?}(.*)\\end{align%*?}%s*$")
    or tex:match("^%s*\\begin{split}(.*)\\end{split}%s*$")
  local rows = body and table_of(body)
  local reasoned = rows ~= nil
  for _, cells in ipairs(rows or {}) do
    reasoned = reasoned and #cells <= 4 and (cells[3] or "") == ""
  end
  return rows, reasoned
end

local function display(tex)
  local number
  tex = tex:gsub("%s*\\tag%s*(%b{})", function(tag)
    if number then
      refuse("two numbers in one formula: " .. tex)
    end
    number = tag:sub(2, -2)
    return ""
  end)
  local tagged = number and quoted(number) or "none"
  local rows, reasoned = aligned(tex)
  if not rows then
    return "#formula(" .. tagged .. ", " .. spoken(" " .. formula(tex) .. " ") .. ")"
  end
  local lines = {}
  for _, cells in ipairs(rows) do
    local pieces = {}
    if reasoned then
      local why = cells[4] and reason(cells[4]) or ""
      pieces = { "$" .. formula(cells[1]) .. "$", "$" .. formula(cells[2] or "") .. "$", "[" .. why .. "]" }
      lines[#lines + 1] = "(" .. table.concat(pieces, ", ") .. ")"
    else
      for i, cell in ipairs(cells) do
        pieces[i] = (i > 1 and i % 2 == 1 and "#h(2em) " or "") .. formula(cell)
      end
      lines[#lines + 1] = table.concat(pieces, " & ")
    end
  end
  if reasoned then
    return "#derivation(" .. tagged .. ", " .. table.concat(lines, ", ") .. ")"
  end
  return "#formula(" .. tagged .. ", " .. spoken(" " .. table.concat(lines, " \\ ") .. " ") .. ")"
end

local function math(element)
  local shown = element.mathtype == "DisplayMath"
  local set = shown and display(element.text) or "#" .. spoken(formula(element.text)) .. ";"
  if paper then
    return pandoc.RawInline("typst", set)
  end
  return element -- what paper has no place for has been refused for the page too
end

local function math_or_code(element)
  local kind = element.classes[1]
  if kind == "shown" or kind == "inline" then
    return pandoc.Math(kind == "shown" and "DisplayMath" or "InlineMath", element.text)
  end
end

-- Links ------------------------------------------------------------------------------------------

-- A handout stands alone: a link to a file beside the notebook becomes words.
local function links(inlines)
  for i, element in ipairs(inlines) do
    if element.t == "Link" and not element.target:find("^%a+:") then
      local words = pandoc.utils.stringify(element)
      local number = element.target:match("^(%d%d)_[^/]*%.ipynb")
      local content = element.content
      if number and words:match("^%d+$") then
        local before = inlines[i - 2] and inlines[i - 2].text or ""
        local name = before:match("^[Nn]otebooks?$") and "" or "notebook "
        content = pandoc.Inlines(name .. tonumber(number))
      elseif number and not words:match("^" .. tonumber(number) .. "%.") then
        content:extend(pandoc.Inlines(" (notebook " .. tonumber(number) .. ")"))
      end
      inlines[i] = pandoc.Span(content)
    elseif element.t == "Link" and paper and pandoc.utils.stringify(element) ~= element.target then
      inlines[i] = pandoc.Span({ element, pandoc.Note({ pandoc.Plain({ pandoc.Code(element.target) }) }) })
    end
  end
  return inlines
end

-- Blocks -----------------------------------------------------------------------------------------

local CALLS = { takeaway = true, mistake = true, solution = true, answer = true, cell = true, lead = true }

local function div(element)
  local name = element.classes[1]
  if not CALLS[name] then
    refuse("a block of class " .. tostring(name) .. " is unknown")
  end
  if not paper then
    return nil
  end
  local blocks = pandoc.Blocks({ pandoc.RawBlock("typst", "#" .. name .. "[") })
  blocks:extend(element.content)
  blocks:insert(pandoc.RawBlock("typst", "]"))
  return blocks
end

local function is_display(block)
  local first = block and block.t == "Para" and block.content[1] or {}
  return first.mathtype == "DisplayMath" or first.t == "Image" or first.t == "RawInline"
end

local function is_room(block)
  if not block or block.t ~= "Div" then
    return false
  end
  local code = block.content[1]
  return block.classes[1] == "answer" or (code.t == "CodeBlock" and code.attributes.room ~= nil)
end

-- On paper a display is a block of its own; and what leads on to the next block stays with it: a
-- sentence that has not ended, what stands before a display, and what asks for an answer.
local function leads(blocks)
  local parted = pandoc.Blocks({})
  for _, block in ipairs(blocks) do
    local piece = pandoc.Inlines({})
    local function close()
      if #piece > 0 then
        parted:insert(pandoc.Para(piece))
        piece = pandoc.Inlines({})
      end
    end
    for _, element in ipairs(block.t == "Para" and block.content or {}) do
      if element.mathtype == "DisplayMath" then
        close()
        parted:insert(pandoc.Para({ element }))
      elseif #piece > 0 or element.t ~= "SoftBreak" then
        piece:insert(element)
      end
    end
    close()
    if block.t ~= "Para" then
      parted:insert(block)
    end
  end
  local asks = false -- the whole of a question stands above the room for its answer
  for i = #parted - 1, 1, -1 do
    local block, after = parted[i], parted[i + 1]
    local ended = pandoc.utils.stringify(block):match("[.!?][\"'’”)]*$")
    asks = block.t == "Para" and (asks or is_room(after))
    if asks or block.t == "Para" and not is_display(block) and (not ended or is_display(after)) then
      parted[i] = pandoc.Div({ block }, { class = "lead" })
    end
  end
  return parted
end

-- A list that ends the notebook is set small, and is not alone on a page.
local function reading(blocks)
  local last
  for i, block in ipairs(blocks) do
    last = block.t == "Header" and i or last
  end
  if #blocks ~= last + 1 or blocks[#blocks].t ~= "BulletList" then
    return
  end
  local list, heading = blocks:remove(), blocks:remove()
  list = list:walk({
    Note = function(note)
      return pandoc.RawInline("typst", "#address(" .. quoted(pandoc.utils.stringify(note.content)) .. ");")
    end,
  })
  local cell = blocks[#blocks]
  if cell and cell.t == "Div" and cell.content[#cell.content].t == "CodeBlock" then
    cell.content[#cell.content].attributes.sticky = "true"
  end
  local set = pandoc.write(pandoc.Pandoc({ heading }), "typst")
  blocks:insert(pandoc.RawBlock("typst", "#reading[" .. set .. "]["))
  for i, entry in ipairs(list.content) do
    blocks:extend(entry)
    blocks:insert(pandoc.RawBlock("typst", i < #list.content and "][" or "]"))
  end
end

local function handout(document)
  local first = document.blocks[1]
  if paper and first and first.t == "Header" then -- and not the cheat sheet's formulas
    document = document:walk({ Blocks = leads })
    reading(document.blocks)
    return document
  end
end

local function escaped(text)
  return (text:gsub("[&<>]", { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;" }))
end

local function code(element)
  local class = element.classes[1]
  if class == "output" and paper then
    local lang = element.classes[2] and ", lang: " .. quoted(element.classes[2]) or ""
    local sticky = element.attributes.sticky and ", sticky: true" or ""
    return pandoc.RawBlock("typst", "#output(" .. quoted(element.text) .. lang .. sticky .. ")")
  elseif class == "output" then
    local lines = escaped(element.text):gsub("[^\n]*WRONG[^\n]*", "<strong>%0</strong>")
    return pandoc.RawBlock("html5", "<pre class=output>" .. lines .. "</pre>")
  elseif class == "html" and not paper then
    return pandoc.RawBlock("html5", "<div class=output>" .. element.text .. "</div>")
  elseif paper then
    local solved = element.attributes.solved or ""
    local call = "#code(" .. quoted(element.text) .. ", " .. quoted(class or "text")
    call = call .. ", solved: (" .. solved .. (solved ~= "" and ",)" or ")")
    call = call .. (element.attributes.prints and ", below: 0.7em" or "")
    local room = element.attributes.room
    call = call .. (element.attributes.sticky and ", sticky: true" or "")
    return pandoc.RawBlock("typst", call .. (room and ", room: (" .. room .. "))" or ")"))
  end
end

local function image(element)
  if element.src:find(":") then
    refuse("the image " .. element.src .. " is not a file beside the notebook")
  end
  if paper then
    local words = pandoc.utils.stringify(element.caption)
    return pandoc.RawInline("typst", "#drawing(" .. quoted(element.src) .. ", " .. quoted(words) .. ");")
  end
end

local function raw(element)
  refuse("raw " .. element.format .. ", " .. element.text:match("[^\n]*"))
end

local ALIGN = { AlignLeft = "left", AlignRight = "right", AlignCenter = "center" }

local function tables(element)
  if not paper then
    element.colspecs = element.colspecs:map(function(spec)
      return { spec[1], nil } -- as wide as the content wants
    end)
    return element
  end
  local function row_of(row)
    local cells = row.cells:map(function(cell)
      return "[" .. pandoc.write(pandoc.Pandoc(cell.contents), "typst"):gsub("%s+$", "") .. "]"
    end)
    return "(" .. table.concat(cells, ", ") .. ",)"
  end
  local align = element.colspecs:map(function(spec)
    return ALIGN[spec[1]] or "auto"
  end)
  local rows = element.bodies[1].body:map(row_of)
  local head = row_of(element.head.rows[1])
  local parts = { "(" .. table.concat(align, ", ") .. ",)", head, table.concat(rows, ", ") }
  return pandoc.RawBlock("typst", "#tabular(" .. table.concat(parts, ", ") .. ")")
end

local function str(element)
  if paper and element.text:find("^%d+%.$") then
    return pandoc.RawInline("typst", element.text:sub(1, -2) .. "\\.") -- or typst sees a list
  end
  if element.text:find("\\begin{") or element.text:find("\\end{") then
    refuse("TeX outside of dollars, " .. element.text)
  end
end

return {
  { RawBlock = raw, RawInline = raw, Code = math_or_code, Inlines = links },
  { Pandoc = handout, Image = image },
  { Math = math, Str = str, CodeBlock = code, Table = tables },
  { Div = div },
}
